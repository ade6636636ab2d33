"""LoRA adapters on PEFT: attaching them, reading their factors, and the norm of what they add."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

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


def attach_adapter(
    model: nn.Module,
    name: str,
    *,
    r: int,
    alpha: float,
    target_modules: list[str] | str | None,
    seed: int,
) -> PeftModel:
    """Add a LoRA adapter to every targeted linear layer and activate it beside those that are there.

    A is drawn per layer from the seed and the layer's name, row by row, with PEFT's default distribution
    U(−1/√in, 1/√in); B is zero. So two methods with one seed start alike, and a larger rank extends a smaller one.

    Args:
        model: Plain model, or a `PeftModel` that gets one more adapter.
        name: Name of the adapter.
        r: Rank.
        alpha: ``lora_alpha``.
        target_modules: As in `peft.LoraConfig`.
        seed: Seed of the initial A.

    Raises:
        ValueError: No layer matches, a layer is not an unquantised linear layer, or r exceeds a dimension.
    """
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=target_modules, lora_dropout=0.0)
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        peft_model = model
    else:
        if target_modules is not None:
            _check_targets(model, target_modules, r)
        peft_model = get_peft_model(model, config, adapter_name=name)
    for layer_name, factors in adapter_factors(peft_model, name).items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{layer_name}".encode()))
        bound = factors.A.shape[1] ** -0.5
        draw = torch.rand(factors.A.shape, generator=generator) * (2 * bound) - bound
        with torch.no_grad():
            factors.A.copy_(draw)
            factors.B.zero_()
    active = list(dict.fromkeys([*peft_model.active_adapters, name]))
    peft_model.base_model.set_adapter(active)
    return peft_model


def _check_targets(model: nn.Module, target_modules: list[str] | str, r: int) -> None:
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


def adapter_norm(factors: Iterable[Factors]) -> Tensor:
    r"""Norm of what an adapter adds, :math:`c=\sqrt{\sum_j\|s B_jA_j\|_F^2}`."""
    return torch.stack([pair.squared_norm for pair in factors]).sum().clamp_min(0).sqrt()


@torch.no_grad()
def scale_adapter(factors: Iterable[Factors], factor: Tensor | float) -> None:
    """Multiply what an adapter adds by ``factor`` >= 0: its A and B each by the square root."""
    root = torch.as_tensor(factor).sqrt()
    for pair in factors:
        pair.A.mul_(root.to(pair.A))
        pair.B.mul_(root.to(pair.B))


@torch.no_grad()
def clip_adapter(factors: Mapping[str, Factors], rho: float, mode: str) -> None:
    r"""Bring an adapter back into the ball of radius rho.

    ``global``: :math:`c=\sqrt{\sum_j\|sB_jA_j\|^2}`; if c > rho, every A_j and B_j is multiplied by
    :math:`\sqrt{\rho/c}`, so that afterwards c = rho. ``layerwise``: the same for every layer alone, each with
    radius rho/√(number of layers), so that the whole stays within rho. ``none``: nothing.
    """
    if mode == "none":
        return
    if mode == "global":
        norm = adapter_norm(factors.values())
        scale_adapter(factors.values(), torch.where(norm > rho, rho / norm, torch.ones_like(norm)))
        return
    radius = rho / len(factors) ** 0.5
    for pair in factors.values():
        norm = adapter_norm([pair])
        scale_adapter([pair], torch.where(norm > radius, radius / norm, torch.ones_like(norm)))
