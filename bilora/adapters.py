"""LoRA adapters on PEFT: switching them and reading their factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

WRAPPED = "base_model.model."
"""What PEFT puts before the names of a model's own modules."""
PRIMARY = "primary"
AUXILIARY = "auxiliary"


@dataclass(frozen=True)
class Factors:
    """One layer's adapter: the layer adds ``scaling * B @ A`` to its weight.

    Attributes:
        A: (r, in).
        B: (out, r).
        scaling: lora_alpha / r, for rsLoRA lora_alpha / √r.
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


def check_plain(model: nn.Module) -> None:
    """Refuse a model that holds adapters already.

    Raises:
        ValueError: It does, whoever put them there.
    """
    if isinstance(model, PeftModel):
        raise ValueError("model: expected a plain model, got one with adapters; use bilora.minimum(model).model")
    if (name := held_adapter(model)) is not None:
        raise ValueError(
            f"model: expected a plain model, got one that holds an adapter at {name}. PEFT puts adapters into the very "
            "model that it is given, so that one that was trained before holds them: make or load it anew, or use "
            "bilora.minimum(trainer).model of the earlier trainer"
        )


def held_adapter(model: nn.Module) -> str | None:
    """Name of the first module that PEFT put into a model; None if there is none."""
    ours = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return next((name for name, module in model.named_modules() if isinstance(module, ours)), None)


def activate(model: PeftModel, names: Sequence[str]) -> None:
    """Compute with these adapters, or with none; active ones become trainable."""
    if PRIMARY not in model.peft_config:  # adapters of another kind below the auxiliary are not its own to switch
        for layer in adapted_layers(model).values():
            layer.enable_adapters(bool(names))
            layer.set_adapter(list(names))
        return
    if not names:
        model.base_model.disable_adapter_layers()
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module._active_adapter = []  # or PEFT's merge_and_unload would merge what is off
        return
    if _is_off(model):
        model.base_model.enable_adapter_layers()
    model.base_model.set_adapter(list(names))


def _is_off(model: PeftModel) -> bool:
    return any(layer.disable_adapters for layer in adapted_layers(model).values())


@contextmanager
def only_adapters(model: PeftModel, names: Sequence[str]) -> Iterator[None]:
    """Compute with these adapters alone; the others and what is trained are as before on the way out."""
    active = [] if _is_off(model) else list(model.active_adapters)
    trained = [(p, p.requires_grad) for p in model.parameters()]
    activate(model, names)
    try:
        yield
    finally:
        activate(model, active)
        for parameter, flag in trained:
            parameter.requires_grad_(flag)


def adapted_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted linear layers, named as in the plain model."""
    return {
        name.removeprefix(WRAPPED): module for name, module in model.named_modules() if isinstance(module, LoraLinear)
    }


def adapter_prefixes(model: nn.Module) -> tuple[str, ...]:
    """How the names of all LoRA tensors in a model begin."""
    return tuple(f"{name}.lora_" for name, module in model.named_modules() if isinstance(module, LoraLayer))


def adapter_factors(model: nn.Module, adapter: str) -> dict[str, Factors]:
    """The live factors of one adapter by layer, named as in the plain model."""
    return {
        name: Factors(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, float(layer.scaling[adapter]))
        for name, layer in adapted_layers(model).items()
        if adapter in layer.lora_A
    }


def frozen_weight(layer: LoraLinear) -> Tensor:
    """The weight under an adapter, always as (out, in): GPT-2's `Conv1D` stores it as (in, out)."""
    weight: Tensor = layer.get_base_layer().weight
    return weight.T if layer.fan_in_fan_out else weight
