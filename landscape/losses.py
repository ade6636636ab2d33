"""Losses of single examples, and how much each example weighs in the mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.showing import kind_of

Batch = Mapping[str, Any] | tuple[Any, Any] | list[Any]
PerExampleLoss = Callable[[Any, Batch], Tensor]

Tokens = Literal["none", "places", "aligned", "next"]

IGNORED = -100
"""Label that PyTorch and Hugging Face leave out of the loss."""

_PROBABILITY_TOLERANCE = 1e-2


@dataclass(frozen=True)
class LabelLoss:
    r"""Mean of a per-label loss over the labels of an example, those equal to -100 left out.

    An example weighs as much as it has labels that count, so that the weighted mean over a data set is the mean
    over its labels (tokens), whatever the batches and the padding.

    Args:
        per_label: Loss (m,) of logits (m, classes) against class indices (m,) or class probabilities (m, classes).
        tokens: ``none``: one label an example, logits (n, classes), or one a pixel, logits (n, classes, H, W).
            ``places``: as `torch.nn.CrossEntropyLoss` has them, logits (n, classes, …) and labels (n, …). ``aligned``:
            one label a token, logits (n, T, classes) and labels (n, T). ``next``: the logits at t predict the label
            at t + 1 (causal language models).
        class_weights: (classes,) how much a label of each class weighs; by default all the same.
    """

    per_label: Callable[[Tensor, Tensor], Tensor]
    tokens: Tokens = "none"
    class_weights: Tensor | None = None

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """Losses (n,) of the examples of a batch."""
        logits, targets = logits_of(outputs), _labels_of(batch)
        if logits.ndim == 3 and self.tokens == "none":
            raise ValueError(
                f"loss: the logits have shape {tuple(logits.shape)}, as one row per token; say how the labels lie: "
                "token_cross_entropy (logits (n, T, classes), label t belongs to token t), next_token_cross_entropy "
                "(causal models), or torch.nn.CrossEntropyLoss() (logits (n, classes, T))"
            )
        if self.tokens in ("none", "places"):
            _check_labels(logits, targets)
            if logits.ndim < 3 or targets.is_floating_point():
                return self._masked(logits, targets)
            logits, targets = logits.flatten(2).transpose(1, 2), targets.flatten(1)
        elif logits.shape[:2] != targets.shape:
            raise ValueError(
                f"labels: expected one a token, shape {tuple(logits.shape[:2])}, got {tuple(targets.shape)}; logits "
                "(n, classes, T) are those of torch.nn.CrossEntropyLoss()"
            )
        if self.tokens == "next":
            logits, targets = logits[:, :-1], targets[:, 1:]
        losses = self._masked(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)).reshape(targets.shape)
        weights = self._weights(targets).to(losses)
        return (losses * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=torch.finfo(losses.dtype).tiny)

    def weights(self, batch: Batch) -> Tensor:
        """Number of labels that count, or the sum of their classes' weights, for each example (n,)."""
        targets = _labels_of(batch)
        if targets.is_floating_point():  # class probabilities
            return torch.ones(len(targets), device=targets.device)
        if self.tokens == "next":
            targets = targets[:, 1:]
        return self._weights(targets).reshape(len(targets), -1).sum(dim=1)

    def _weights(self, targets: Tensor) -> Tensor:
        counts = targets != IGNORED
        if self.class_weights is None:
            return counts.double()
        return self.class_weights.to(targets.device).double()[targets.where(counts, 0)] * counts

    def _masked(self, logits: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            return self.per_label(logits, targets)
        counts = targets != IGNORED
        return self.per_label(logits, targets.where(counts, 0)).where(counts, 0.0)


@dataclass(frozen=True)
class ValueLoss:
    """Mean over an example's outputs of a loss of each against its target.

    Args:
        per_value: Loss of outputs against targets of the same shape, entry by entry.
    """

    per_value: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """Losses (n,) of the examples of a batch."""
        values, targets = logits_of(outputs), targets_of(batch)
        if values.ndim == 0 and targets.numel() == 1:  # of a single example, by a model that ends in squeeze()
            values = values.reshape(1)
        if not same_places(values, targets):
            raise ValueError(
                f"loss: expected a target for each of the outputs, shape {tuple(values.shape)}, got "
                f"{tuple(targets.shape)}"
            )
        losses: Tensor = self.per_value(values, targets.reshape(values.shape).to(values.dtype))
        return losses.reshape(len(losses), -1).mean(dim=1)


def same_places(values: Tensor, targets: Tensor) -> bool:
    """Whether targets lie as values do, but for axes of one, or in a single axis after the first."""
    if values.ndim == 0 or targets.ndim == 0:
        return False
    if len(values) != len(targets) or values.numel() != targets.numel():
        return False
    mine, theirs = ([size for size in tensor.shape[1:] if size != 1] for tensor in (values, targets))
    return mine == theirs or min(len(mine), len(theirs)) == 1


def cross_entropy_of(
    class_weights: Tensor | None = None, *, label_smoothing: float = 0.0, tokens: Tokens = "none"
) -> LabelLoss:
    """Cross-entropy with class weights or smoothed labels, as `torch.nn.functional.cross_entropy` averages it.

    Args:
        class_weights: (classes,); a label weighs as its class does, in the mean over all data, too.
        label_smoothing: Share of every label that is spread evenly over the classes, 0 to 1.
        tokens: See `LabelLoss`.

    Raises:
        ValueError: A class weight is negative or not finite, or 0 beside smoothed labels.

    >>> loss = cross_entropy_of(torch.tensor([1.0, 3.0]))
    >>> loss.weights((torch.zeros(2, 2), torch.tensor([0, 1])))
    tensor([1., 3.], dtype=torch.float64)
    """

    if class_weights is not None:
        if not bool((class_weights.isfinite() & (class_weights >= 0)).all()):
            raise ValueError(f"class_weights: expected finite weights of at least 0, got {class_weights.tolist()}")
        if label_smoothing and not bool((class_weights > 0).all()):
            raise ValueError(
                "class_weights: a smoothed label of a class of weight 0 has a loss, but weighs nothing in torch's "
                "mean; expected weights above 0 with label_smoothing"
            )

    def per_label(logits: Tensor, targets: Tensor) -> Tensor:
        weight = None if class_weights is None else class_weights.to(logits)
        losses = F.cross_entropy(logits, targets, weight, reduction="none", label_smoothing=label_smoothing)
        if weight is None or targets.is_floating_point():
            return losses
        own = weight[targets]  # the mean weighs by it again; what weighs nothing has no loss
        return losses / own.where(own > 0, 1.0)

    return LabelLoss(per_label, tokens, class_weights)


def _squared_error(values: Tensor, targets: Tensor) -> Tensor:
    return (values - targets).square()


def _binary(values: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(values, targets, reduction="none")


def _is_wrong(logits: Tensor, targets: Tensor) -> Tensor:
    classes = targets.argmax(dim=-1) if targets.is_floating_point() else targets
    return (logits.argmax(dim=-1) != classes).to(logits.dtype)


cross_entropy = cross_entropy_of()
"""Cross-entropy of one label an example, in nats."""

token_cross_entropy = cross_entropy_of(tokens="aligned")
"""Cross-entropy of one label a token, in nats (token classification, masked and sequence-to-sequence models)."""

next_token_cross_entropy = cross_entropy_of(tokens="next")
"""Cross-entropy of the next token, in nats (causal language models; labels as Hugging Face lays them out)."""

zero_one = LabelLoss(_is_wrong)
"""Error of the predicted class, 0 or 1."""

mse = ValueLoss(_squared_error)
"""Squared error, averaged over an example's outputs (regression)."""

binary_cross_entropy = ValueLoss(_binary)
"""Binary cross-entropy of logits, averaged over an example's labels, in nats (two classes, or several labels)."""


def _check_labels(logits: Tensor, targets: Tensor) -> None:
    """Refuse labels that cross-entropy would misread or trip over.

    Raises:
        ValueError: Floating labels are no class probabilities, or class indices have another shape than (n,).
    """
    shapes = f"got labels of shape {tuple(targets.shape)} and logits of shape {tuple(logits.shape)}"
    others = "use loss=binary_cross_entropy for two classes or several labels an example, loss=mse for regression"
    if logits.ndim < 2:
        raise ValueError(f"labels: expected logits of several classes, shape (n, classes), {shapes}; {others}")
    if not targets.is_floating_point():
        if targets.shape != logits.shape[:1] + logits.shape[2:]:
            wanted = logits.shape[:1] + logits.shape[2:]
            each = "a place" if len(wanted) > 1 else "an example"
            raise ValueError(f"labels: expected one class index {each}, shape {tuple(wanted)}, {shapes}; {others}")
    elif targets.shape != logits.shape or logits.shape[-1] == 1:
        raise ValueError(
            f"labels: numbers of floating type are class probabilities, one for each of several logits; {shapes}; "
            f"{others}, or integer labels"
        )


def check_targets(loss: PerExampleLoss, outputs: Any, batches: Sequence[Batch]) -> None:
    """Refuse labels of any batch that a `LabelLoss` cannot mean, once the number of classes is known.

    Raises:
        ValueError: A class index is out of range, class probabilities do not sum to 1, or a target of binary
            cross-entropy is no probability.
    """
    if loss is binary_cross_entropy:
        for index, targets in enumerate(map(targets_of, batches)):
            wrong = targets[(targets < 0) | (targets > 1)]
            if len(wrong):
                raise ValueError(
                    f"labels: expected 0, 1 or probabilities between them, got {float(wrong[0]):g} in batch {index} "
                    f"({IGNORED} leaves a class index out, not one of several labels)"
                )
    if not isinstance(loss, LabelLoss):
        return
    logits = logits_of(outputs)
    classes = logits.shape[1] if logits.ndim > 3 or loss.tokens == "places" else logits.shape[-1]
    for index, targets in enumerate(map(_labels_of, batches)):
        if targets.is_floating_point() and targets.ndim > 2:
            raise ValueError(
                f"labels: those of batch {index} have the shape {tuple(targets.shape)} of class probabilities of many "
                "places an example, which are not supported; give class indices, or a loss of your own"
            )
        if targets.is_floating_point():
            off = (targets.double().sum(dim=-1) - 1).abs().max()
            if off > _PROBABILITY_TOLERANCE:
                raise ValueError(
                    f"labels: those of batch {index} are of floating type, but not class probabilities: their sums "
                    f"differ from 1 by up to {float(off):.3g}; use loss=binary_cross_entropy for several labels an "
                    "example, loss=mse for regression"
                )
            continue
        wrong = targets[(targets != IGNORED) & ((targets < 0) | (targets >= classes))]
        if len(wrong):
            raise ValueError(
                f"labels: expected class indices from 0 to {classes - 1} or {IGNORED}, got {int(wrong[0])} in batch "
                f"{index}"
            )


def logits_of(outputs: Any) -> Tensor:
    """The logits of a plain tensor or of a Hugging Face output."""
    if isinstance(outputs, Tensor):
        return outputs
    if not hasattr(outputs, "logits"):
        raise ValueError(f"model: expected logits or an output with .logits, got {type(outputs).__name__}")
    logits: Tensor = outputs.logits
    return logits


def targets_of(batch: Batch) -> Tensor:
    """The second part of a pair, or the ``labels`` of a mapping."""
    if not isinstance(batch, Mapping):
        return _tensor(batch[1])
    if "labels" not in batch:
        raise ValueError(f"batches: a mapping needs 'labels', got the keys {sorted(batch)}")
    return _tensor(batch["labels"])


def _labels_of(batch: Batch) -> Tensor:
    """Targets, of a type that can be -100 where they are class indices."""
    targets = targets_of(batch)
    return targets if targets.is_floating_point() else targets.long()


def _tensor(labels: Any) -> Tensor:
    if isinstance(labels, Tensor):
        return labels
    listed = isinstance(labels, list | tuple)
    numbers = listed and all(isinstance(one, int | float) for one in labels)
    fix = "use torch.tensor(labels)" if numbers else "a loss of your own, a function of (outputs, batch), reads others"
    raise ValueError(f"labels: expected a tensor, got {kind_of(labels)}; {fix}")
