"""PyTorch's own losses, taken for what they mean: losses of single examples, of which the mean is taken here."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
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
    F.cross_entropy: replace(cross_entropy, tokens="places"),
    F.mse_loss: mse,
    F.binary_cross_entropy_with_logits: binary_cross_entropy,
}


_BY_ENTRY = (
    *(nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss, nn.KLDivLoss, nn.BCELoss),
    *(nn.BCEWithLogitsLoss, nn.SoftMarginLoss, nn.HingeEmbeddingLoss, nn.MultiLabelSoftMarginLoss),
)
"""Modules that hold each output against a target of its own, where torch broadcasts others."""


@dataclass(frozen=True)
class TorchLoss:
    """A loss module of PyTorch's without its reduction, averaged over each example's outputs.

    Args:
        loss: With ``reduction="none"``.
        by_sum: Whether an example's loss is the sum over its outputs, as ``batchmean`` has it, not their mean.
    """

    loss: nn.Module
    by_sum: bool = False

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """Losses (n,) of the examples of a batch."""
        values, targets = logits_of(outputs), targets_of(batch)
        by_entry = isinstance(self.loss, _BY_ENTRY)
        if (by_entry or targets.is_floating_point()) and targets.shape != values.shape:
            if not same_places(values, targets):
                raise ValueError(
                    f"loss: {type(self.loss).__name__} got outputs of shape {tuple(values.shape)} and targets of shape "
                    f"{tuple(targets.shape)}; expected one shape"
                )
            targets = targets.reshape(values.shape)
        weight = getattr(self.loss, "weight", None)
        if by_entry and weight is not None and weight.ndim >= values.ndim and len(weight) > 1:
            raise ValueError(
                f"loss: {type(self.loss).__name__} has weights of shape {tuple(weight.shape)}, one for each example of "
                f"a batch; expected one for each of the outputs {tuple(values.shape[1:])}, or a function of (outputs, "
                "batch) with weights of its own"
            )
        losses: Tensor = self.loss(values, targets.to(values.dtype) if by_entry else targets)
        if losses.ndim == 0 or len(losses) != len(targets):
            raise ValueError(
                f"loss: expected {type(self.loss).__name__} with reduction='none' to give a loss for each of "
                f"{len(targets)} examples, got shape {tuple(losses.shape)}; write a function of (outputs, batch) that "
                "returns one loss an example"
            )
        losses = losses.reshape(len(losses), -1)
        counts = self._counting(targets)
        if counts is None:
            return losses.sum(dim=1) if self.by_sum else losses.mean(dim=1)
        counts = counts.to(losses)
        return (losses * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)

    def try_on(self, outputs: Any, batch: Batch) -> None:
        """Refuse a module that does not take outputs and targets.

        Raises:
            ValueError: It fails on them.
        """
        try:
            self(outputs, batch)
        except (TypeError, RuntimeError, IndexError) as error:
            name, reason = type(self.loss).__name__, str(error).splitlines()[0]
            raise ValueError(
                f"loss: {name} fails on the outputs and targets of the first batch: {reason}; write a function of "
                "(outputs, batch) that returns one loss an example"
            ) from error

    def weights(self, batch: Batch) -> Tensor:
        """Number of labels that count, for each example (n,); 1 where the module leaves none out."""
        targets = targets_of(batch)
        counts = self._counting(targets)
        return torch.ones(len(targets), device=targets.device) if counts is None else counts.double().sum(dim=1)

    def _counting(self, targets: Tensor) -> Tensor | None:
        """Which labels (n, places) count in the mean of a loss that leaves some out."""
        ignored = getattr(self.loss, "ignore_index", None)
        if ignored is None or targets.is_floating_point():
            return None
        return targets.reshape(len(targets), -1) != ignored


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
    by_sum = isinstance(loss, nn.KLDivLoss) and loss.reduction == "batchmean"
    if not by_sum and loss.reduction not in ("mean", "none"):
        raise ValueError(
            f"loss: {name} has reduction={loss.reduction!r}, but the mean over the examples is measured; use "
            "reduction='mean'"
        )
    kind = type(loss)  # what a class derived from one of torch's computes is its own matter
    if kind in (nn.CrossEntropyLoss, nn.NLLLoss) and loss.ignore_index != IGNORED:
        raise ValueError(f"loss: expected ignore_index={IGNORED}, got {loss.ignore_index}; mark labels by {IGNORED}")
    if kind is nn.NLLLoss and loss.weight is None:
        return LabelLoss(_negative_log_likelihood, "places")
    if kind is nn.CrossEntropyLoss:
        return cross_entropy_of(loss.weight, label_smoothing=loss.label_smoothing, tokens="places")
    if kind is nn.MSELoss:
        return mse
    if kind is nn.BCEWithLogitsLoss and loss.weight is None and loss.pos_weight is None:
        return binary_cross_entropy
    if getattr(loss, "weight", None) is not None and kind not in (nn.BCEWithLogitsLoss, nn.BCELoss):
        raise ValueError(
            f"loss: {name} averages by its class weights, which cannot be undone here; use "
            "landscape.cross_entropy_of(class_weights), or a function of (outputs, batch) with weights of its own"
        )
    alone = copy.deepcopy(loss)
    alone.reduction = "none"
    return TorchLoss(alone, by_sum)
