"""Optimizers over a method's parameter groups that call the method at every step."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bilora.methods.base import Method


def method_optimizer(
    method: Method, optimizer_class: type[Optimizer], *, num_steps: int | None = None, **kwargs: Any
) -> Optimizer:
    """An optimizer over the method's groups that calls the method before and after each step.

    Args:
        method: Prepared method.
        optimizer_class: Any optimizer class with `torch.optim.Optimizer`'s interface: to ascend, the method negates
            the auxiliary's gradients.
        num_steps: Steps of the whole training; needed for a rho schedule, and by methods whose noise grows.
        **kwargs: For the optimizer; ``lr`` is the primary's rate.

    Raises:
        ValueError: The number of steps is needed and neither given nor known.
    """
    method.num_steps = method.num_steps if num_steps is None else num_steps
    if method.needs_num_steps:
        method.progress  # noqa: B018 -- refuses where it is not known
    return hooked(method, over_groups(optimizer_class, method.parameter_groups(kwargs.get("lr")), kwargs))


def over_groups(
    optimizer_class: type[Optimizer], groups: Sequence[dict[str, Any]], options: dict[str, Any]
) -> Optimizer:
    """An optimizer over the groups; pytorch_optimizer's Muon gets matrices and vectors apart, the latter for its AdamW.

    Raises:
        ValueError: torch's own Muon, which moves matrices alone, is given others.
    """
    if moves_matrices_alone(optimizer_class):
        others = sum(parameter.ndim != 2 for group in groups for parameter in group["params"])
        if others:
            raise ValueError(
                f"optimizer: torch.optim.Muon moves matrices alone, got {others} other weights (biases, norms); use "
                "pytorch_optimizer's Muon, which moves these by AdamW"
            )
    elif optimizer_class.__module__.startswith("pytorch_optimizer.") and "Muon" in optimizer_class.__name__:
        groups = [part for group in groups for part in _matrices_and_vectors(group)]
    return optimizer_class(groups, **options)


def moves_matrices_alone(optimizer_class: type[Optimizer]) -> bool:
    """Whether it is torch's Muon, which releases before 2.9 lack."""
    return optimizer_class is getattr(torch.optim, "Muon", None)


def _matrices_and_vectors(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The group's two halves, without those that are empty; the vectors' rate is Muon's own option for them."""
    matrices = [parameter for parameter in group["params"] if parameter.ndim > 1]
    vectors = [parameter for parameter in group["params"] if parameter.ndim < 2]
    rest = {key: value for key, value in group.items() if key != "lr"}
    halves = [group | {"params": matrices, "use_muon": True}, rest | {"params": vectors, "use_muon": False}]
    return [half for half in halves if half["params"]]


def decaying_groups(
    method: Method, learning_rate: float | None, weight_decay: float, decaying: Collection[int]
) -> list[dict[str, Any]]:
    """The method's groups, with weight decay on those descending weights alone whose ids are ``decaying``."""
    descending, *others = method.parameter_groups(learning_rate)
    halves: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []} if weight_decay else {0.0: []}
    for parameter in descending["params"]:
        halves[weight_decay if id(parameter) in decaying else 0.0].append(parameter)
    groups = [descending | {"params": half, "weight_decay": decay} for decay, half in halves.items() if half]
    return [*groups, *others]


def adopted(method: Method, optimizer: Optimizer) -> Optimizer:
    """An optimizer that the user built, made to call the method.

    Raises:
        ValueError: It does not hold the weights that the method trains.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = {id(p) for group in method.parameter_groups() for p in group["params"]}
    if held != trained:
        raise ValueError(
            f"optimizers: the optimizer holds {len(held)} weights, of which {len(held & trained)} are among the "
            f"{len(trained)} that {method.name} trains (adapters are attached by the trainer); pass "
            "optimizer_cls_and_kwargs=(class, options) instead"
        )
    return hooked(method, optimizer)


def hooked(method: Method, optimizer: Optimizer) -> Optimizer:
    """The optimizer, calling the method before and after each step; the method gets to know it too.

    A closure gives the step's gradient inside the step, so that the method is called after each of its evaluations. A
    step that a gradient scaler skips for an overflow calls nothing. A deep copy calls the copy of the method that is
    made with it; one that is pickled is a plain optimizer again, to be given to `hooked` once more.
    """
    method.optimizer = optimizer
    zero_grad = optimizer.zero_grad

    def before(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if _overflowed(optimizer):
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the first argument is the optimizer
        if closure is None:
            method.before_step()
            return None

        def evaluated() -> Any:
            loss = closure()
            method.before_step()
            return loss

        return (args[:1], kwargs | {"closure": evaluated})

    def forget(set_to_none: bool = True) -> None:
        zero_grad(set_to_none)
        method.forget_gradients()

    optimizer.register_step_pre_hook(before)

    def after(*_: Any) -> None:
        if not _overflowed(optimizer):
            method.after_step()

    def copied(memo: dict[int, Any]) -> Optimizer:
        del optimizer.__deepcopy__  # type: ignore[attr-defined]
        try:
            twin = copy.deepcopy(optimizer, memo)
        finally:
            optimizer.__deepcopy__ = copied  # type: ignore[attr-defined]
        return hooked(copy.deepcopy(method, memo), twin)

    optimizer.register_step_post_hook(after)
    optimizer.zero_grad = forget  # type: ignore[method-assign]
    optimizer.__deepcopy__ = copied  # type: ignore[attr-defined]
    return optimizer


def _overflowed(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler has told a fused optimizer to change nothing in this step."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
