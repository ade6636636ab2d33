"""LoRA adapters on PEFT: attaching them, switching them and reading their factors."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from bilora.config import Primary
from bilora.fused import FusedLinear

PRIMARY = "primary"
AUXILIARY = "auxiliary"


@dataclass(frozen=True)
class Factors:
    """One layer's adapter: the layer adds ``scaling * B @ A`` to its weight.

    Attributes:
        A: (r, in).
        B: (out, r).
        scaling: lora_alpha / r.
    """

    A: Tensor
    B: Tensor
    scaling: float

    @property
    def delta_weight(self) -> Tensor:
        """scaling · BA, shape (out, in)."""
        return self.scaling * self.B @ self.A

    @property
    def squared_norm(self) -> Tensor:
        r""":math:`\|sBA\|_F^2 = s^2\operatorname{tr}((B^\top B)(AA^\top))`: r×r work, no out×in product."""
        return self.scaling**2 * ((self.B.T @ self.B) * (self.A @ self.A.T)).sum()


_PEFT_OPTIONS: dict[Primary, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "lora_ga": {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()},
}


def attach_adapter(
    model: nn.Module,
    name: str,
    *,
    r: int,
    alpha: float,
    target_modules: list[str] | str | None,
    seed: int,
    modules_to_save: list[str] | None = None,
    kind: Primary = "lora",
) -> PeftModel:
    """Add a LoRA adapter to every targeted linear layer and activate it beside those that are there.

    A is drawn per layer from the seed and the layer's name, row by row, with PEFT's default distribution
    U(−1/√in, 1/√in); B is zero. So two methods with one seed start alike, and a larger rank extends a smaller one.
    PiSSA and LoRA-GA keep the initial factors that define them.

    Args:
        model: Plain model, or a `PeftModel` that gets one more adapter.
        name: Name of the adapter.
        r: Rank.
        alpha: ``lora_alpha``.
        target_modules: As in `peft.LoraConfig`.
        seed: Seed of the initial A.
        modules_to_save: Modules trained as a whole and saved with the adapter, as in `peft.LoraConfig`.
        kind: Variant of LoRA, as PEFT offers it.

    Raises:
        ValueError: A name matches nothing, a layer is not an unquantised linear layer, r exceeds a dimension, or
            LoRA-GA's gradients are missing.
    """
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        target_modules=target_modules,
        modules_to_save=modules_to_save,
        lora_dropout=0.0,
        **_PEFT_OPTIONS[kind],
    )
    config._register_custom_module({nn.Linear: FusedLinear})
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        peft_model = model
    else:
        if target_modules is not None:
            _check_targets(model, target_modules, r, needs_gradients=kind == "lora_ga")
        _check_saved_modules(model, modules_to_save or [])
        peft_model = get_peft_model(model, config, adapter_name=name)
    if kind not in {"pissa", "lora_ga"}:
        _draw_factors(adapter_factors(peft_model, name), f"{seed}/{name}")
    active = list(dict.fromkeys([*peft_model.active_adapters, name]))
    peft_model.base_model.set_adapter(active)
    return peft_model


@torch.no_grad()
def _draw_factors(factors: Mapping[str, Factors], seed: str) -> None:
    for layer_name, pair in factors.items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{layer_name}".encode()))
        bound = pair.A.shape[1] ** -0.5
        pair.A.copy_(torch.rand(pair.A.shape, generator=generator) * (2 * bound) - bound)
        pair.B.zero_()


def _check_targets(model: nn.Module, target_modules: list[str] | str, r: int, *, needs_gradients: bool) -> None:
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(target_modules=target_modules)
    matched = [(n, m) for n, m in model.named_modules() if n and check_target_module_exists(config, n)]
    if not matched:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ValueError(f"target_modules: {target_modules!r} matches no layer; the model's linear layers are {linear}")
    for layer_name, module in matched:
        if type(module) is not nn.Linear:
            raise ValueError(
                f"target_modules: {layer_name} is a {type(module).__name__}; expected unquantised nn.Linear layers"
            )
        if r > min(module.in_features, module.out_features):
            raise ValueError(
                f"r: rank {r} exceeds the dimensions of {layer_name} "
                f"({module.out_features}, {module.in_features}); use at most "
                f"{min(module.in_features, module.out_features)}"
            )
        if needs_gradients and not hasattr(module, "_peft_loraga_grad"):
            raise ValueError(
                f"primary: lora_ga needs the gradient of {layer_name}; run "
                "peft.tuners.lora.loraga.preprocess_loraga on the model first"
            )


def _check_saved_modules(model: nn.Module, modules_to_save: list[str]) -> None:
    names = [name for name, _ in model.named_modules() if name]
    for wanted in modules_to_save:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
            top = [name for name, _ in model.named_children()]
            raise ValueError(f"modules_to_save: {wanted!r} matches no module; the model's parts are {top}")


@contextmanager
def only_adapter(model: PeftModel, name: str) -> Iterator[None]:
    """Compute with one adapter alone; the others and what is trained are as before on the way out."""
    active = list(model.active_adapters)
    trained = [(p, p.requires_grad) for p in model.parameters()]
    model.base_model.set_adapter([name])
    try:
        yield
    finally:
        model.base_model.set_adapter(active)
        for parameter, flag in trained:
            parameter.requires_grad_(flag)


def adapted_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted linear layers, named as in the plain model."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLinear)
    }


def adapter_factors(model: nn.Module, adapter: str) -> dict[str, Factors]:
    """The live factors of one adapter by layer, named as in the plain model."""
    return {
        name: Factors(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, float(layer.scaling[adapter]))
        for name, layer in adapted_layers(model).items()
        if adapter in layer.lora_A
    }
