"""Merging what a model's adapters learned into its weights, which are then measured."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bilora.adapters import AUXILIARY, PRIMARY, WRAPPED, adapted_layers, adapter_factors, frozen_weight
from bilora.attaching import initial_factors
from bilora.measured import Minimum, Pair

_HALF = (torch.float16, torch.bfloat16)


def merged_adapters(model: PeftModel, base: nn.Module | None = None) -> Minimum:
    """Merge a model's adapters; the model is used up.

    PEFT's own PiSSA, OLoRA and their like leave a residual in place of the pretrained weights, which are then known
    from ``base`` alone.

    A model of half precision becomes one of float32: merged, an adapter's change would be lost in its rounding.
    """
    layers = adapted_layers(model)
    if not any(isinstance(module, LoraLayer) for module in model.modules()):
        return trained_by_itself(model, _layers_of_another_kind(model), {})
    _refuse_other_kinds(model, layers)
    if any(layer.merged for layer in layers.values()):
        model.base_model.unmerge_adapter()
    if any(frozen_weight(layer).dtype in _HALF for layer in layers.values()):
        model.float()
    off = any(layer.disable_adapters for layer in layers.values())
    merged = [] if off else [name for name in model.active_adapters if name != AUXILIARY]
    if merged:
        _untie(model)
    measured = _first_names(model)
    factors = {
        adapter: {measured[f"{layer}.weight"]: (pair.A.detach(), pair.B.detach()) for layer, pair in pairs.items()}
        for adapter in model.peft_config
        if (pairs := adapter_factors(model, adapter))
    }
    if not merged:  # all are off
        plain = model.unload().requires_grad_(True)
        adapted = {measured[f"{layer}.weight"] for layer in layers}
        return Minimum(plain, tuple(name for name, _ in plain.named_parameters() if name in adapted), {}, factors)
    moved = not initial_factors(model) and any(_moves_the_base(model.peft_config[name]) for name in merged)
    before = _pretrained(model)
    model.base_model.set_adapter(merged)
    plain = model.merge_and_unload(adapter_names=merged).requires_grad_(True)
    after = dict(plain.named_parameters())
    names = tuple(name for name in after if name in before)
    if moved:
        given = {} if base is None else dict(base.named_parameters())
        before = {name: given[name].detach().to(after[name]) for name in names if name in given}
    return Minimum(plain, names, {name: after[name].detach() - before[name] for name in before}, factors)


def _layers_of_another_kind(model: PeftModel) -> list[str]:
    """Layers with adapters that are no LoRA, where all of them are linear; else none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    fit = all(isinstance(layer.get_base_layer(), nn.Linear | Conv1D) for layer in layers.values())
    return list(layers) if fit else []


def trained_by_itself(model: nn.Module, layers: Iterable[str], pairs: Mapping[str, Pair]) -> Minimum:
    """What a model trained by itself: its own weights, or adapters that are no LoRA; it is used up.

    Adapters are merged where their kind can be, and the updates are then known; a prefix and its like stay in front of
    the weights that are measured.

    Args:
        model: Without an auxiliary.
        layers: Names of the layers to measure; none for all weights.
        pairs: Factors by layer of the auxiliary that there was.
    """
    layers, before = list(layers), dict[str, Tensor]()
    _untie(model, layers)
    weights = {layer: _weight_of(model.get_submodule(layer)) for layer in layers}
    if isinstance(model, PeftModel) and isinstance(model.base_model, BaseTuner):
        if any(weight.dtype in _HALF for weight in model.parameters()):
            model.float()
        before = {layer: weight.detach().clone() for layer, weight in weights.items()}
        model = _merged(model)
        weights = {layer: _weight_of(model.get_submodule(layer.removeprefix(WRAPPED))) for layer in layers}
    names = {id(parameter): name for name, parameter in model.requires_grad_(True).named_parameters()}
    measured = {layer: names[id(weight)] for layer, weight in weights.items()}
    updates = {measured[layer]: weights[layer].detach() - one for layer, one in before.items()}
    ordered = tuple(name for name in names.values() if name in set(measured.values()) or not layers)
    factors = {AUXILIARY: {measured[layer]: pair for layer, pair in pairs.items()}} if pairs else {}
    return Minimum(model, ordered, updates, factors)


def _merged(model: PeftModel) -> nn.Module:
    held = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if any(one.merged or one.disable_adapters for one in held):
        raise ValueError(
            "source: the model's adapters are merged already, or off; expected them active and unmerged, or what "
            "merge_and_unload() or unload() returns"
        )
    # PEFT takes a head of several layers for one of its own.
    for name, part in list(model.named_modules()):
        if isinstance(part, ModulesToSaveWrapper):
            above, _, own = name.rpartition(".")
            active = part.active_adapters
            head = part.modules_to_save[active[0]] if active and not part.disable_adapters else part.original_module
            setattr(model.get_submodule(above), own, head)
    try:
        plain: nn.Module = model.base_model.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"source: PEFT cannot merge the model's adapters into its weights ({error}); expected a kind that it can, "
            "or the model itself with params, measured by landscape.EmpiricalRisk"
        ) from error
    return plain


def _weight_of(layer: nn.Module) -> Tensor:
    return (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer).get_parameter("weight")


def _moves_the_base(config: Any) -> bool:
    """Whether PEFT takes the first product of an adapter of these settings out of the frozen weights."""
    kind = getattr(config, "init_lora_weights", True)
    return isinstance(kind, str) and kind.startswith(("pissa", "olora", "corda", "loftq", "lora_ga"))


def _refuse_other_kinds(model: PeftModel, layers: Mapping[str, nn.Module]) -> None:
    """Refuse adapters whose weights and factors could not all be measured.

    Raises:
        ValueError: They are of several kinds, or in embeddings, convolutions or single parameters, or PEFT cannot merge
            them.
    """
    known = {id(layer) for layer in layers.values()}
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        where, kind = name.removeprefix(WRAPPED), type(module).__module__.split(".")[-2]
        if id(module) not in known:
            inner = type(module.get_base_layer()).__name__
            raise ValueError(
                f"source: {where} holds an adapter of a {inner}, of kind {kind}; expected LoRA in linear layers alone, "
                "whose weights and factors are measured: pass what merge_and_unload() returns, with params for the "
                "weights to measure"
            )
        if any(getattr(one, "alora_invocation_tokens", None) for one in getattr(model, "peft_config", {}).values()):
            raise ValueError(
                f"source: {where} has an adapter of aLoRA's, which is active on some tokens only and has no merged "
                "weight to measure; expected plain LoRA"
            )
        if any(module.lora_bias.values()) and module.get_base_layer().bias is None:
            raise ValueError(
                f"source: {where} has an adapter with a bias (lora_bias) and no bias to merge it into; expected one "
                "without, or a layer with a bias"
            )


def _first_names(model: nn.Module) -> dict[str, str]:
    """By the name of a weight in the plain model, that under which the plain model lists it first."""
    first: dict[int, str] = {}
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = name.removeprefix(WRAPPED).replace(".base_layer.", ".")
        names[plain] = first.setdefault(id(parameter), plain)
    return names


def _untie(model: nn.Module, layers: Iterable[str] = ()) -> None:
    """Give adapted layers weights of their own: what is merged into a shared one would change its other users, too.

    Another user may share the layer's weight, or be the very layer below the adapter at another place. Further
    ``layers`` are those that an auxiliary moved without the other users.
    """
    named = model.named_parameters(remove_duplicate=False)
    uses = Counter(id(parameter) for _, parameter in named)
    for name in layers:
        layer = model.get_submodule(name)
        if not isinstance(layer, BaseTunerLayer) and uses[id(getattr(layer, "weight", None))] > 1:
            above, _, own = name.rpartition(".")
            setattr(model.get_submodule(above), own, copy.deepcopy(layer))
            _say_untied(model)
    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        inner = layer.get_base_layer()
        if uses[id(getattr(inner, "weight", None))] > 1:
            layer.base_layer = copy.deepcopy(inner)
            _say_untied(model)


def _say_untied(model: nn.Module) -> None:
    config = getattr(model, "config", None)
    if config is not None and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False  # or saving and loading would tie them again


@torch.no_grad()
def _pretrained(model: PeftModel) -> dict[str, Tensor]:
    """Copies of the weights as they were before training, in their own layout."""
    weights = {}
    for layer, module in adapted_layers(model).items():
        weight = frozen_weight(module).detach().clone()
        if layer in initial_factors(model):
            a, b = initial_factors(model)[layer]
            weight += (adapter_factors(model, PRIMARY)[layer].scaling * b @ a).to(weight)
        weights[f"{layer}.weight"] = weight.T if module.fan_in_fan_out else weight
    return weights
