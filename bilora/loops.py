"""Training loops of one's own: preparing a model for a method, and the optimizer whose step is the method's."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from bilora.config import BiLoraConfig
from bilora.methods import build_method
from bilora.methods.base import Method
from bilora.optimizers import method_optimizer


def attach(model: nn.Module, config: BiLoraConfig, *, seed: int = 0) -> nn.Module:
    """Prepare a plain model for a method; see `bilora_optimizer`.

    Args:
        model: Plain model; adapters are attached to it.
        config: Method and its settings.
        seed: Seed of the initial factors.

    Returns:
        The model to train; ``.bilora_method`` is the method. After training, ``.bilora_method.deploy()`` turns the
        auxiliary off, and ``save_adapter(model, "primary", path)`` saves the result without it.

    Raises:
        ValueError: The method is unknown, would ignore a setting, or does not fit the model.
    """
    method = build_method(model, config, seed=seed)
    method.model.bilora_method = method  # type: ignore[assignment]
    return method.model


def bilora_optimizer(
    model: nn.Module, optimizer_class: type[Optimizer], *, lr: float, num_steps: int | None = None, **kwargs: Any
) -> Optimizer:
    """An optimizer whose ``step()`` is the method's: descent, ascent and the clip.

    Between them a loop runs forward and backward as usual. Methods that take the gradient in their own way (SAM's
    two passes, noise) go through ``model.bilora_method.gradient(backward)`` or the trainer instead.

    Args:
        model: From `attach`.
        optimizer_class: Any optimizer class with `torch.optim.Optimizer`'s interface.
        lr: Learning rate of the primary.
        num_steps: Steps of the whole training; needed for a rho schedule.
        **kwargs: For the optimizer. ``weight_decay`` decays every descending weight, as torch has it.

    Raises:
        ValueError: The model was not attached, or the method needs its own gradient.
    """
    method = getattr(model, "bilora_method", None)
    if not isinstance(method, Method):
        raise ValueError(f"model: expected a model from bilora.attach, got {type(model).__name__}")
    if type(method).gradient is not Method.gradient:
        raise ValueError(
            f"model: {method.name} takes the gradient in its own way; use BiLoraTrainer, or method_optimizer and "
            "model.bilora_method.gradient(backward)"
        )
    return method_optimizer(method, optimizer_class, lr=lr, num_steps=num_steps, **kwargs)
