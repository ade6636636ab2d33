"""The road from a trained model to its landscape: merged weights, their risk, and the spaces its adapters open."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import load_peft_weights
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from bilora.adapters import AUXILIARY, PRIMARY, adapted_layers, adapter_factors, frozen_weight, held_adapter
from bilora.attaching import initial_factors
from bilora.beside import WRAPPED, own_adapters, plain_name, without_auxiliary
from bilora.buffers import load_buffers
from bilora.checkpoints import INITIAL, OWN
from landscape import EmpiricalRisk, Layout, LowRankSubspace, orthonormal_basis
from landscape.subspaces import Kind

_HALF = (torch.float16, torch.bfloat16)
_Module = TypeVar("_Module", bound=nn.Module)
Pair = tuple[Tensor, Tensor]
"""The factors (A, B) of one weight, A (r, in) and B (out, r)."""


@dataclass(frozen=True, repr=False)
class Minimum:
    """A trained model with its adapter merged, and what it was trained from.

    Attributes:
        model: Plain model with merged weights.
        weight_names: The adapted layers' weights, the measured space, in the model's order; all weights where the
            training had no adapter.
        updates: By weight name, merged weight minus pretrained weight, in the weight's own layout; empty where the
            pretrained weights are not known.
        factors: By adapter and weight name, (A, B); empty for methods without adapters.
    """

    model: nn.Module
    weight_names: tuple[str, ...]
    updates: dict[str, Tensor]
    factors: dict[str, dict[str, Pair]]

    def __repr__(self) -> str:
        adapters = f"; adapters {', '.join(sorted(self.factors))}" if self.factors else ""
        return f"Minimum({type(self.model).__name__}: {len(self.weight_names)} measured tensors{adapters})"

    def risk(self, batches: Iterable[Any], **options: Any) -> EmpiricalRisk:
        """Mean loss of the merged model over the adapted weights; options as of `landscape.EmpiricalRisk`."""
        return EmpiricalRisk(self.model, batches, params=list(self.weight_names), **options)

    def subspace(self, layout: Layout, adapter: str = PRIMARY, kind: Kind = "tangent") -> LowRankSubspace:
        """Directions of weight space that an adapter's factors open.

        Args:
            layout: Of the risk, ``risk.layout``.
            adapter: ``primary``, ``auxiliary``, or the name of an adapter of the model's.
            kind: As in `landscape.LowRankSubspace`.

        Raises:
            ValueError: The minimum has no such adapter.
        """
        if adapter not in self.factors:
            raise ValueError(f"adapter: expected one of {sorted(self.factors) or 'none'}, got {adapter!r}")
        return factor_subspace(layout, self.factors[adapter], kind)


def factor_subspace(layout: Layout, factors: Mapping[str, Pair], kind: Kind) -> LowRankSubspace:
    """Subspace that factors (A, B) by weight open: of B's columns, of A's rows, or of both.

    A weight stored as (in, out), as in GPT-2, has the transposed product Aᵀ Bᵀ.
    """
    stored = {name: (b.T, a.T) if name in layout.transposed else (a, b) for name, (a, b) in factors.items()}
    columns = {name: orthonormal_basis(b) for name, (_, b) in stored.items()}
    rows = {name: orthonormal_basis(a.T) for name, (a, _) in stored.items()}
    return LowRankSubspace(layout, columns, rows, kind)


def minimum(source: Trainer | nn.Module | str | Path, *, base: nn.Module | None = None) -> Minimum:
    """What was trained, as a plain model with the spaces of its adapters.

    The source is left as it is: its model is copied, so that the memory for one more is needed; in float32 where
    adapters are merged into weights of half precision, in whose rounding their change would be lost.

    Args:
        source: A trainer; a `peft.PeftModel`, whose active adapters without the auxiliary are merged; a plain model; or
            a folder that holds an adapter, a checkpoint of `BiLoraTrainer`'s, or a whole Hugging Face model.
        base: The plain model under an adapter in a folder, in the state in which the training found it; for a whole
            model, and for adapters of PEFT's own that change the weights below them at the start (PiSSA, OLoRA), what
            it is compared with for ``updates``.

    Raises:
        ValueError: The folder holds none of these, an adapter's base is missing, or adapters lie in other layers than
            linear ones.

    >>> from bilora import BiLoraConfig, attach
    >>> net = nn.Sequential(nn.Linear(4, 3))
    >>> found = minimum(attach(net, BiLoraConfig(r=2, target_modules=["0"])))
    >>> found.weight_names, sorted(found.factors)
    (('0.weight',), ['auxiliary', 'primary'])
    """
    if isinstance(source, str | Path):
        return _from_folder(Path(source), base)
    model = source.model if isinstance(source, Trainer) else source
    if isinstance(model, PeftModel):
        if PRIMARY not in own_adapters(model) and AUXILIARY in own_adapters(model):
            trained = _unwrapped(copy.deepcopy(model))
            factors = adapter_factors(trained, AUXILIARY)
            pairs = {layer: (pair.A.detach(), pair.B.detach()) for layer, pair in factors.items()}
            return _beside_auxiliary(without_auxiliary(trained), pairs)
        return _merged(_unwrapped(copy.deepcopy(model)), base)
    if not isinstance(model, nn.Module):
        raise ValueError(f"source: expected a trainer, a model or a folder, got {type(source).__name__}")
    if (held := held_adapter(model)) is not None:
        raise ValueError(
            f"source: the model holds an adapter at {held}; pass the peft.PeftModel around it, or what its "
            "merge_and_unload() returns"
        )
    return _whole(_unwrapped(copy.deepcopy(model)), base)


def _unwrapped(model: _Module) -> _Module:
    """A copy of a trainer's model without the mixed precision that accelerate puts around its forward pass."""
    for module in model.modules():
        own = vars(module).pop("_original_forward", None)
        if own is not None:
            vars(module).pop("forward", None)
            if getattr(own, "__func__", None) is not type(module).forward:  # it was one of the module's own
                module.forward = own
    return model


def _merged(model: PeftModel, base: nn.Module | None = None) -> Minimum:
    """Merge a model's adapters; the model is used up.

    PEFT's own PiSSA, OLoRA and their like leave a residual in place of the pretrained weights, which are then known
    from ``base`` alone.

    A model of half precision becomes one of float32: merged, an adapter's change would be lost in its rounding.
    """
    layers = adapted_layers(model)
    _refuse_other_kinds(model, layers)
    if not layers:
        raise ValueError("source: the model has no adapted linear layers to measure")
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


def _beside_auxiliary(model: nn.Module, pairs: Mapping[str, Pair]) -> Minimum:
    """What was trained beside an auxiliary: own weights, or adapters of another kind; the model is used up.

    Those are merged where their kind can be, and the updates are then known; a prefix and its like stay in front of the
    weights that are measured.

    Args:
        model: Without the auxiliary.
        pairs: The auxiliary's factors by layer.
    """
    before: dict[str, Tensor] = {}
    weights = {layer: _weight_of(model.get_submodule(layer)) for layer in pairs}
    if isinstance(model, PeftModel) and isinstance(model.base_model, BaseTuner):
        if any(weight.dtype in _HALF for weight in weights.values()):
            model.float()
        _untie(model)
        before = {layer: _weight_of(model.get_submodule(layer)).detach().clone() for layer in pairs}
        try:
            plain: nn.Module = model.base_model.merge_and_unload()
        except (AttributeError, NotImplementedError, ValueError) as error:
            raise ValueError(
                f"source: PEFT cannot merge the model's adapters into its weights ({error}); expected a kind that it "
                "can, or the model itself with params, measured by landscape.EmpiricalRisk"
            ) from error
        model = plain
        weights = {layer: _weight_of(model.get_submodule(layer.removeprefix(WRAPPED))) for layer in pairs}
    names = {id(parameter): name for name, parameter in model.requires_grad_(True).named_parameters()}
    measured = {layer: names[id(weight)] for layer, weight in weights.items()}
    updates = {measured[layer]: weights[layer].detach() - one for layer, one in before.items()}
    ordered = tuple(name for name in names.values() if name in set(measured.values()))
    return Minimum(model, ordered, updates, {AUXILIARY: {measured[layer]: pair for layer, pair in pairs.items()}})


def _weight_of(layer: nn.Module) -> Tensor:
    return (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer).get_parameter("weight")


def _moves_the_base(config: Any) -> bool:
    """Whether PEFT takes the first product of an adapter of these settings out of the frozen weights."""
    kind = getattr(config, "init_lora_weights", True)
    return isinstance(kind, str) and kind.startswith(("pissa", "olora", "corda", "loftq", "lora_ga"))


def _refuse_other_kinds(model: PeftModel, layers: Mapping[str, nn.Module]) -> None:
    """Refuse adapters whose weights and factors could not all be measured.

    Raises:
        ValueError: They are of another kind than LoRA, or in embeddings, convolutions or single parameters, or PEFT
            cannot merge them.
    """
    known = {id(layer) for layer in layers.values()}
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        where, kind = name.removeprefix("base_model.model."), type(module).__module__.split(".")[-2]
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
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        names[plain] = first.setdefault(id(parameter), plain)
    return names


def _untie(model: PeftModel) -> None:
    """Give adapted layers weights of their own: what is merged into a shared one would change its other users, too.

    Another user may share the layer's weight, or be the very layer below the adapter at another place.
    """
    named = model.named_parameters(remove_duplicate=False)
    uses = Counter(id(parameter) for _, parameter in named)
    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        inner = layer.get_base_layer()
        if uses[id(inner.weight)] > 1:
            layer.base_layer = copy.deepcopy(inner)
            if getattr(getattr(model, "config", None), "tie_word_embeddings", False):
                model.config.tie_word_embeddings = False  # or saving and loading would tie them again


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


def _whole(model: nn.Module, base: nn.Module | None) -> Minimum:
    model.requires_grad_(True)
    names = tuple(name for name, _ in model.named_parameters())
    updates = {}
    if base is not None:
        before = dict(base.named_parameters())
        updates = {name: p.detach() - before[name].detach() for name, p in model.named_parameters() if name in before}
    return Minimum(model, names, updates, {})


def _from_folder(folder: Path, base: nn.Module | None) -> Minimum:
    inside = folder / PRIMARY if (folder / PRIMARY / "adapter_config.json").is_file() else folder
    if (inside / "adapter_config.json").is_file():
        if base is None:
            raise ValueError(
                f"base: {folder} holds an adapter; expected the plain model that it was trained on, got None"
            )
        _refuse_moved_base(folder)
        kind = json.loads((inside / "adapter_config.json").read_text()).get("init_lora_weights")
        if isinstance(kind, str) and kind.startswith("pissa_niter"):
            raise ValueError(
                f"source: {folder} was trained from {kind}, whose base PEFT draws anew at random when it loads the "
                "adapter; pass the trained model itself, or an adapter saved with path_initial_model_for_weight_"
                "conversion"
            )
        found = _merged(PeftModel.from_pretrained(copy.deepcopy(base), str(inside), adapter_name=PRIMARY), base)
        load_buffers(found.model, folder)
        auxiliary = folder / AUXILIARY
        if (auxiliary / "adapter_config.json").is_file():
            found.factors[AUXILIARY] = _stored_factors(auxiliary)
        return found
    if (folder / OWN).is_file():
        return _from_own_weights(folder, base)
    if (folder / "config.json").is_file():
        return _whole(load_whole(folder), base)
    raise ValueError(f"source: {folder} holds neither adapter_config.json nor config.json; expected a trained model")


@torch.no_grad()
def _from_own_weights(checkpoint: Path, base: nn.Module | None) -> Minimum:
    """A checkpoint of a model whose own weights were trained beside an auxiliary."""
    if base is None:
        raise ValueError(f"base: {checkpoint} holds weights without a model; expected the plain model, got None")
    plain = copy.deepcopy(base)
    places = plain.state_dict()
    pairs = {name.removesuffix(".weight"): pair for name, pair in _stored_factors(checkpoint / AUXILIARY).items()}
    for key, tensor in load_file(checkpoint / OWN).items():
        places[plain_name(key, pairs)].copy_(tensor)
    found = _beside_auxiliary(plain, pairs)
    if found.updates or isinstance(base, PeftModel):
        return found
    before, after = dict(base.named_parameters()), dict(found.model.named_parameters())
    return replace(found, updates={name: after[name].detach() - before[name].detach() for name in found.weight_names})


def load_whole(folder: Path) -> PreTrainedModel:
    """The model in a Hugging Face folder, of the class that its ``config.json`` names, in eval mode.

    Raises:
        ValueError: It names none that transformers has.
    """
    named = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    architecture = getattr(transformers, named[0], None)
    if architecture is None:
        raise ValueError(f"source: {folder}/config.json names no model class of transformers, got {named[0]!r}")
    model: PreTrainedModel = architecture.from_pretrained(folder, local_files_only=True)
    return model.eval()


def _refuse_moved_base(folder: Path) -> None:
    if (folder / INITIAL).is_file():
        raise ValueError(
            f"source: {folder} is a checkpoint of an adapter that changed the frozen weights when it was made; use "
            "what trainer.save_model writes, or the trainer itself"
        )


def _stored_factors(folder: Path) -> dict[str, Pair]:
    tensors = load_peft_weights(str(folder), device="cpu")
    factors = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            layer = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            factors[f"{layer}.weight"] = (a, tensors[key.replace("lora_A", "lora_B")])
    return factors
