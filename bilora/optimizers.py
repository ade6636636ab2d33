"""Optimizers over a method's parameter groups, for the trainer and for training loops of one's own."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from bilora.config import BiLoraConfig
from bilora.methods import build_method
from bilora.methods.base import Method


def attach(model: nn.Module, config: BiLoraConfig, *, seed: int = 0) -> nn.Module:
    """Prepare a plain model for a method, for a training loop of one's own; see `bilora_optimizer`.

    Args:
        model: Plain model; adapters are attached to it.
        config: Method and its settings.
        seed: Seed of the initial factors.

    Returns:
        The model to train; ``.bilora_method`` is the method. For a result without the auxiliary, save it with
        ``save_adapter(model, "primary", path)``.

    Raises:
        ValueError: The method is unknown or does not fit the model.
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
        optimizer_class: Any `torch.optim` optimizer that knows ``maximize``.
        lr: Learning rate of the primary.
        num_steps: Steps of the whole training; needed for a rho schedule.
        **kwargs: For the optimizer.

    Raises:
        ValueError: The model was not attached, the method needs its own gradient, or the optimizer cannot ascend.
    """
    method = getattr(model, "bilora_method", None)
    if not isinstance(method, Method):
        raise ValueError(f"model: expected a model from bilora.attach, got {type(model).__name__}")
    if type(method).gradient is not Method.gradient:
        raise ValueError(
            f"model: {method.name} takes the gradient in its own way; use BiLoraTrainer, or method_optimizer and "
            "model.bilora_method.gradient(backward)"
        )
    if num_steps is None and method.config.rho_schedule != "constant":
        raise ValueError(f"num_steps: expected a number, for rho_schedule={method.config.rho_schedule!r}; got None")
    method.num_steps = num_steps or 1
    return method_optimizer(method, optimizer_class, lr=lr, **kwargs)


def method_optimizer(method: Method, optimizer_class: type[Optimizer], *, lr: float, **kwargs: Any) -> Optimizer:
    """An optimizer over the method's groups that calls the method before and after each step.

    Raises:
        ValueError: The method ascends and the optimizer class has no ``maximize``.
    """
    groups = method.parameter_groups(lr)
    optimizer = optimizer_class(groups, lr=lr, **kwargs)  # type: ignore[call-arg]
    # An optimizer without it would take the flag for a name of the group's and descend.
    if any(group.get("maximize") for group in groups) and "maximize" not in optimizer.defaults:
        raise ValueError(
            f"optimizer_class: {optimizer_class.__name__} has no `maximize`, which {method.name} ascends by"
        )
    optimizer.register_step_pre_hook(lambda *_: method.before_step())
    optimizer.register_step_post_hook(lambda *_: method.after_step())
    return optimizer
