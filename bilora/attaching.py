"""Attaching the primary and the auxiliary adapter to a model."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import IA3Config, LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bilora.adapters import AUXILIARY, PRIMARY, Factors, adapter_factors, check_plain
from bilora.beside import attach_beside, check_trains_itself
from bilora.buffers import remember_buffers
from bilora.config import CLASSIFIERS, BiLoraConfig, Primary
from bilora.fused import FusedLinear

_PEFT_OPTIONS: dict[Primary, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "lora_ga": {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()},
}
MOVES_THE_BASE: tuple[Primary, ...] = ("pissa", "lora_ga")
"""Kinds that take their first product out of the frozen weight, so that the adapter alone is not the change."""


def attach_primary(model: nn.Module, config: BiLoraConfig, *, seed: int, rank_factor: int = 1) -> PeftModel:
    """Add the primary adapter to every targeted linear layer.

    A is drawn per layer from the seed and the layer's name, row by row, with PEFT's default distribution
    U(−1/√in, 1/√in); B is zero. So two methods with one seed start alike, and a larger rank extends a smaller one.
    PiSSA and LoRA-GA keep the initial factors that define them; `initial_factors` gives them back.

    Args:
        model: Plain model.
        config: Settings of the adapter.
        seed: Seed of the initial A.
        rank_factor: Multiplies the ranks; the scaling stays.

    Raises:
        ValueError: The model has adapters, a name matches nothing, a layer is not an unquantised linear layer, a rank
            exceeds a dimension, or LoRA-GA's gradients are missing.
    """
    check_plain(model)
    lora = _checked(model, config, rank_factor=rank_factor)
    _use_own_layers(lora)
    peft_model = get_peft_model(model, lora, adapter_name=PRIMARY)
    remember_buffers(peft_model)
    if config.primary in MOVES_THE_BASE:
        pairs = adapter_factors(peft_model, PRIMARY)
        first = {name: (pair.A.detach().clone(), pair.B.detach().clone()) for name, pair in pairs.items()}
        peft_model.bilora_initial_factors = first
    else:
        _draw_factors(adapter_factors(peft_model, PRIMARY), f"{seed}/{PRIMARY}")
    return peft_model


def attach_ia3(model: nn.Module, config: BiLoraConfig) -> PeftModel:
    """Put PEFT's IA3 on the targeted layers: a learned scale, 1 at first, for each of their outputs.

    Raises:
        ValueError: As of `attach_primary`.
    """
    check_plain(model)
    alone = {"primary": "lora", "r": 1, "auxiliary_r": None}
    lora = _checked(model, config.model_copy(update=alone), rank_factor=1)
    targets = list(_matched(model, lora))
    transposed = {isinstance(model.get_submodule(name), Conv1D) for name in targets}
    if len(transposed) > 1:
        raise ValueError(
            "target_modules: PEFT's IA3 takes either nn.Linear layers or transformers' Conv1D, got both; name one kind"
        )
    ia3 = IA3Config(
        target_modules=_exactly(targets),
        feedforward_modules=[],
        modules_to_save=config.modules_to_save,
        fan_in_fan_out=transposed == {True},
    )
    peft_model = get_peft_model(model, ia3)
    remember_buffers(peft_model)
    return peft_model


def attach_auxiliary_alone(model: nn.Module, config: BiLoraConfig, *, seed: int) -> PeftModel:
    """Add the auxiliary to a model that trains itself; what descends there stays as trainable as it was.

    Raises:
        ValueError: Nothing in it is trained, it holds LoRA, or the settings do not fit its layers.
    """
    check_trains_itself(model)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    if not any(trained for _, trained in flags):
        raise ValueError("primary: 'full' has nothing to train, all weights are frozen; use model.requires_grad_(True)")
    rank = config.auxiliary_r or config.r
    alpha = config.auxiliary_alpha or config.alpha * rank / config.r
    plain = {"primary": "lora", "r": rank, "alpha": alpha, "modules_to_save": None}
    if isinstance(model, PeftModel) and (layers := layers_inside(model, config)):
        plain["target_modules"] = _exactly(layers)
    lora = _checked(model, config.model_copy(update=plain), rank_factor=1)
    _use_own_layers(lora)
    peft_model = attach_beside(model, lora)
    remember_buffers(peft_model)
    _draw_factors(adapter_factors(peft_model, AUXILIARY), f"{seed}/{AUXILIARY}")
    for parameter, trained in flags:
        parameter.requires_grad_(trained)
    return peft_model


def check_layers(model: nn.Module, config: BiLoraConfig, *, rank_factor: int = 1) -> None:
    """Refuse settings of adapters that do not fit a plain model, without changing it.

    Raises:
        ValueError: As of `attach_primary`.
    """
    _checked(model, config, rank_factor=rank_factor)


def layers_inside(model: PeftModel, config: BiLoraConfig) -> list[str]:
    """Names in a model with adapters of the layers that settings name in the plain one, outside ``modules_to_save``."""
    base = model.get_base_model()
    names = {id(module): name for name, module in model.named_modules()}
    heads = tuple(f"{name}." for name, part in base.named_modules() if isinstance(part, AuxiliaryTrainingWrapper))
    found: dict[str, None] = {}
    for name in target_layers(base, config.target_modules):
        above = base.get_submodule(name.rpartition(".")[0])
        layer = above if config.target_modules == "all-linear" and isinstance(above, BaseTunerLayer) else None
        if not f"{name}.".startswith(heads):
            found[names[id(layer or base.get_submodule(name))]] = None
    return list(found)


def _exactly(names: Iterable[str]) -> str:
    """An expression for these names alone: PEFT takes names in a list for the ends of longer ones, too."""
    return "|".join(re.escape(name) for name in names)


def _checked(model: nn.Module, config: BiLoraConfig, *, rank_factor: int) -> LoraConfig:
    """PEFT's configuration for the settings, once they fit the model."""
    # s = alpha / r, and alpha / √r for rsLoRA.
    growth = rank_factor**0.5 if config.primary == "rslora" else rank_factor
    lora = LoraConfig(
        r=config.r * rank_factor,
        lora_alpha=config.alpha * growth,
        target_modules=config.target_modules,
        modules_to_save=config.modules_to_save,
        rank_pattern={name: rank * rank_factor for name, rank in config.rank_pattern.items()},
        alpha_pattern={name: alpha * growth for name, alpha in config.alpha_pattern.items()},
        lora_dropout=config.lora_dropout,
        **_PEFT_OPTIONS[config.primary],
    )
    _check_saved_modules(model, config.modules_to_save or [])
    _resolve_targets(model, lora)
    _check_targets(model, lora, config)
    return lora


def attach_auxiliary(model: PeftModel, config: BiLoraConfig, *, seed: int) -> None:
    """Add a plain LoRA adapter to the very layers that have the primary, and activate it beside the primary.

    Rank and scaling are the primary's layer by layer, whatever its kind, unless the settings say otherwise.
    """
    primary = adapter_factors(model, PRIMARY)
    ranks = {name: config.auxiliary_r or pair.A.shape[0] for name, pair in primary.items()}
    alphas = {name: config.auxiliary_alpha or pair.scaling * ranks[name] for name, pair in primary.items()}
    exactly = {name: f"^{re.escape(name)}" for name in primary}
    lora = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(alphas.values()),
        target_modules=_exactly(primary),
        rank_pattern={exactly[name]: rank for name, rank in ranks.items() if rank < max(ranks.values())},
        alpha_pattern={exactly[name]: alpha for name, alpha in alphas.items() if alpha < max(alphas.values())},
        lora_dropout=0.0,
    )
    _use_own_layers(lora)
    model.add_adapter(AUXILIARY, lora)
    _draw_factors(adapter_factors(model, AUXILIARY), f"{seed}/{AUXILIARY}")
    model.base_model.set_adapter([PRIMARY, AUXILIARY])


def initial_factors(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) by layer that PiSSA or LoRA-GA took out of the frozen weights of a model prepared here; else empty."""
    return getattr(model, "bilora_initial_factors", {})


def _use_own_layers(lora: LoraConfig) -> None:
    lora._register_custom_module({nn.Linear: FusedLinear, Conv1D: FusedLinear})


@torch.no_grad()
def _draw_factors(factors: Mapping[str, Factors], seed: str) -> None:
    for layer_name, pair in factors.items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{layer_name}".encode()))
        bound = pair.A.shape[1] ** -0.5
        pair.A.copy_(torch.rand(pair.A.shape, generator=generator) * (2 * bound) - bound)
        pair.B.zero_()


def redraw_dead(factors: Mapping[str, Factors], *, seed: int) -> None:
    """Draw an auxiliary's factors anew where both are 0, so that no gradient moves their product."""
    dead = {name: pair for name, pair in factors.items() if not bool(pair.A.any()) and not bool(pair.B.any())}
    _draw_factors(dead, f"{seed}/{AUXILIARY}")


def _resolve_targets(model: nn.Module, lora: LoraConfig) -> None:
    """Put names for ``"all-linear"`` and for PEFT's default."""
    if lora.target_modules is None:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
            raise ValueError(
                f"target_modules: PEFT has no default for {kind or type(model).__name__}; expected names of the "
                f"model's linear layers, of {_linear_endings(model)}"
            )
        lora.target_modules = set(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[kind])
    _maybe_include_all_linear_layers(lora, model)


def target_layers(
    model: nn.Module, target_modules: list[str] | str | None, modules_to_save: list[str] | None = None
) -> list[str]:
    """Names of a plain model's layers that settings adapt, in the model's order."""
    lora = LoraConfig(target_modules=target_modules, modules_to_save=modules_to_save)
    _resolve_targets(model, lora)
    return list(_matched(model, lora))


def _matched(model: nn.Module, lora: LoraConfig) -> dict[str, nn.Module]:
    try:
        return {name: m for name, m in model.named_modules() if name and check_target_module_exists(lora, name)}
    except re.error as error:
        raise ValueError(
            f"target_modules: {lora.target_modules!r} is no regular expression ({error}); expected names of layers, or "
            "one such expression for whole names"
        ) from error


def _check_targets(model: nn.Module, lora: LoraConfig, config: BiLoraConfig) -> None:
    matched = _matched(model, lora)
    wanted = config.target_modules if isinstance(config.target_modules, list) else []
    for name in wanted:
        if not any(found == name or found.endswith(f".{name}") for found in matched):
            raise ValueError(
                f"target_modules: {name!r} matches no layer outside modules_to_save; the model's linear layers are "
                f"{_linear_endings(model)}"
            )
    if not matched:
        raise ValueError(
            f"target_modules: {config.target_modules!r} matches no layer outside modules_to_save; the model's linear "
            f"layers are {_linear_endings(model)}"
        )
    for pattern in (*lora.rank_pattern, *lora.alpha_pattern):
        if all(get_pattern_key([pattern], name) != pattern for name in matched):
            raise ValueError(f"rank_pattern, alpha_pattern: {pattern!r} matches none of {sorted(matched)}")
    _check_fast_path(model, matched)
    for name, outer in matched.items():
        module = outer.get_base_layer() if isinstance(outer, BaseTunerLayer) else outer
        if isinstance(model.get_submodule(name.rpartition(".")[0]), BaseTunerLayer):
            raise ValueError(
                f"target_modules: {name} lies inside an adapter, which would change what the auxiliary perturbs; "
                "expected the names of the model's own layers"
            )
        if type(module) not in (nn.Linear, Conv1D):
            raise ValueError(
                f"target_modules: {name} is a {type(module).__name__}; expected unquantised nn.Linear layers or "
                "transformers' Conv1D, as the methods move the matrix that a layer multiplies with"
            )
        if "weight" not in module._parameters:
            raise ValueError(
                f"target_modules: the weight of {name} is computed from others (weight or spectral normalisation), so "
                "that an adapter cannot be merged into it; remove the normalisation first, or leave the layer out"
            )
        shape = tuple(module.get_parameter("weight").shape)
        smallest = min(shape)
        rank = lora.rank_pattern.get(get_pattern_key(list(lora.rank_pattern), name), lora.r)
        for setting, value, factor in (("r", rank, lora.r // config.r), ("auxiliary_r", config.auxiliary_r or 1, 1)):
            if value > smallest:
                times = f" ({factor} times the {value // factor} that was given)" if factor > 1 else ""
                raise ValueError(
                    f"{setting}: rank {value}{times} exceeds the dimensions of {name} {shape}; use at most "
                    f"{smallest // factor}"
                )
        if config.primary in MOVES_THE_BASE and (other := _sharing(model, name)):
            raise ValueError(
                f"primary: {config.primary} takes its first product out of the frozen weight, and that of {name} is "
                f"{other}'s too; expected a kind that leaves it alone, such as lora, or untied weights"
            )
        if config.primary == "lora_ga" and not hasattr(module, "_peft_loraga_grad"):
            raise ValueError(
                f"primary: lora_ga needs the gradient of {name}; run "
                "peft.tuners.lora.loraga.preprocess_loraga on the model first"
            )


def _sharing(model: nn.Module, layer: str) -> str:
    """Name of another weight of the model's that is this layer's, too; empty if there is none."""
    weight = model.get_submodule(layer).weight
    named = model.named_parameters(remove_duplicate=False)
    same = [name for name, parameter in named if parameter is weight and name != f"{layer}.weight"]
    return same[0] if same else ""


def _check_fast_path(model: nn.Module, matched: Mapping[str, nn.Module]) -> None:
    """Refuse layers past whose adapter torch computes in evaluation."""
    if not torch.backends.mha.get_fastpath_enabled():
        return
    blocks = [name for name, module in model.named_modules() if isinstance(module, nn.TransformerEncoderLayer)]
    for name in matched:
        if any(name.startswith(f"{block}." if block else "") for block in blocks):
            raise ValueError(
                f"target_modules: {name} is part of a torch.nn.TransformerEncoderLayer, whose fast path in evaluation "
                "multiplies with the frozen weight, so that the adapter would do nothing there; call "
                "torch.backends.mha.set_fastpath_enabled(False) first, or target layers outside of it"
            )


def _linear_endings(model: nn.Module) -> list[str]:
    linear = (nn.Linear, Conv1D)
    return sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, linear)})


def _check_saved_modules(model: nn.Module, modules_to_save: list[str]) -> None:
    names = [name for name, _ in model.named_modules() if name]
    # PEFT lists the heads that models of a task may have, of which one has one.
    has_a_head = bool(set(CLASSIFIERS).intersection(modules_to_save, (name.rsplit(".", 1)[-1] for name in names)))
    for wanted in modules_to_save:
        if wanted in CLASSIFIERS and has_a_head:
            continue
        if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
            top = [name for name, _ in model.named_children()]
            raise ValueError(f"modules_to_save: {wanted!r} matches no module; the model's parts are {top}")
