"""PyTorch's own losses, taken for what they mean: losses of single examples, of which the mean is taken here."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from landscape.losses import (
    IGNORED,
    Batch,
    LabelLoss,
    PerExampleLoss,
    binary_cross_entropy,
    cross_entropy,
    cross_entropy_of,
    logits_of,
    mse,
    same_places,
    targets_of,
)

_FUNCTIONS: dict[Callable[..., Tensor], PerExampleLoss] = {
    F.cross_entropy: cross_entropy,
    F.mse_loss: mse,
    F.binary_cross_entropy_with_logits: binary_cross_entropy,
}


@dataclass(frozen=True)
class TorchLoss:
    """A loss module of PyTorch's without its reduction, averaged over each example's outputs.

    Args:
        loss: With ``reduction="none"``.
    """

    loss: nn.Module

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """Losses (n,) of the examples of a batch."""
        values, targets = logits_of(outputs), targets_of(batch)
        if targets.is_floating_point() and targets.shape != values.shape:
            if not same_places(values, targets):
                raise ValueError(
                    f"loss: {type(self.loss).__name__} got outputs of shape {tuple(values.shape)} and targets of shape "
                    f"{tuple(targets.shape)}; expected one shape"
                )
            targets = targets.view_as(values)
        losses: Tensor = self.loss(values, targets)
        if losses.ndim == 0 or len(losses) != len(targets):
            raise ValueError(
                f"loss: expected {type(self.loss).__name__} with reduction='none' to give a loss for each of "
                f"{len(targets)} examples, got shape {tuple(losses.shape)}; write a function of (outputs, batch) that "
                "returns one loss an example"
            )
        return losses.reshape(len(losses), -1).mean(dim=1)


def per_example(loss: Any) -> PerExampleLoss | None:
    """A loss as given, or what one of PyTorch's means by it.

    `torch.nn.CrossEntropyLoss` keeps its class weights and label smoothing; of other modules the mean over examples is
    undone. A sum cannot be meant: the mean is what is measured.

    Raises:
        ValueError: It cannot be called, or its reduction cannot be undone.

    >>> per_example(nn.MSELoss()) is mse
    True
    """
    if loss is None:
        return None
    if not callable(loss):
        raise ValueError(
            f"loss: expected a function of (outputs, batch), a loss of landscape's or of torch.nn's, got {loss!r}"
        )
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        return _of_module(loss)
    if loss in _FUNCTIONS:
        return _FUNCTIONS[loss]
    function = loss.func if isinstance(loss, functools.partial) else loss
    if getattr(function, "__module__", "") == "torch.nn.functional":
        name = function.__name__
        raise ValueError(
            f"loss: torch's {name} takes a mean over the batch and no batch's labels; write a function of (outputs, "
            f"batch) that returns F.{name}(outputs, batch[1], reduction='none')"
        )
    return loss


def _negative_log_likelihood(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return F.nll_loss(log_probabilities, targets, reduction="none")


def _of_module(loss: Any) -> PerExampleLoss:
    name = type(loss).__name__
    if loss.reduction not in ("mean", "none"):
        raise ValueError(
            f"loss: {name} has reduction={loss.reduction!r}, but the mean over the examples is measured; use "
            "reduction='mean'"
        )
    kind = type(loss)  # what a class derived from one of torch's computes is its own matter
    if kind in (nn.CrossEntropyLoss, nn.NLLLoss) and loss.ignore_index != IGNORED:
        raise ValueError(f"loss: expected ignore_index={IGNORED}, got {loss.ignore_index}; mark labels by {IGNORED}")
    if kind is nn.NLLLoss and loss.weight is None:
        return LabelLoss(_negative_log_likelihood)
    if kind is nn.CrossEntropyLoss:
        plain = loss.weight is None and loss.label_smoothing == 0
        return cross_entropy if plain else cross_entropy_of(loss.weight, label_smoothing=loss.label_smoothing)
    if kind is nn.MSELoss:
        return mse
    if kind is nn.BCEWithLogitsLoss and loss.weight is None and loss.pos_weight is None:
        return binary_cross_entropy
    if getattr(loss, "weight", None) is not None and kind is not nn.BCEWithLogitsLoss:
        raise ValueError(
            f"loss: {name} averages by its class weights, which cannot be undone here; use "
            "landscape.cross_entropy_of(class_weights), or a function of (outputs, batch) with weights of its own"
        )
    alone = copy.deepcopy(loss)
    alone.reduction = "none"
    return TorchLoss(alone)
