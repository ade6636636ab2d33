"""Single examples of a risk: taken out of their batches, and each at a point of weight space of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from landscape.batches import like_mapping, like_sequence, tensors_of
from landscape.evaluation import exact_products
from landscape.losses import Batch
from landscape.risk import EmpiricalRisk

_CPU_BUDGET = 128 * 2**20
_VECTORS_PER_EXAMPLE = 5
_FEWEST_TOGETHER = 4
_SAME_LOSS = 1e-3
"""Relative difference up to which an example's loss is the same alone and beside others."""
_BESIDE = 0.3
"""How far from the weights they are compared, relative to these."""
_KINDS = 4
"""Kinds of batches that are tried."""


def take_examples(risk: EmpiricalRisk, chosen: Tensor) -> list[Batch]:
    """The chosen examples of a risk as batches, none larger than the risk's own largest.

    Rows of different batches are put together where their shapes agree; batches padded to other lengths stay apart.

    Args:
        risk: Holds the data.
        chosen: (m,) numbers of examples, counted through the batches of this process.

    Raises:
        ValueError: A tensor of a batch does not have one row per example.
    """
    return [batch for batch, _ in _pieces(risk, chosen, max(risk.batch_sizes, default=1))]


@torch.no_grad()
def can_take_examples(risk: EmpiricalRisk) -> bool:
    """Whether every tensor of every batch has one row per example, and an example's loss is that of its rows.

    Shapes do not tell examples from times where there are as many: of the first batches of some kinds, two examples
    that count are tried alone, at a point beside the weights: a head of zeros gives all examples one loss.
    """
    if not has_rows(risk):
        return False
    tried: dict[str, tuple[Batch, int, Tensor]] = {}
    for batch, size, weights in zip(risk.batches, risk.batch_sizes, risk.weights, strict=True):
        counting = torch.where(weights > 0)[0].cpu()
        rows = counting[[-1, 0]] if len(counting) > 1 else torch.tensor([size - 1, 0])
        if size > 1 and len(tried) < _KINDS:
            tried.setdefault(_signature(batch), (batch, size, rows))
    return all(_alike_alone(risk, *one) for one in tried.values())


def _alike_alone(risk: EmpiricalRisk, batch: Batch, size: int, rows: Tensor) -> bool:
    """Whether examples of a batch have the same losses without the others."""
    theta = risk.theta
    noise = torch.randn(len(theta), generator=torch.Generator().manual_seed(0)).to(theta)
    for point in (theta + _BESIDE * noise * (theta.abs() + theta.square().mean().sqrt()), theta):
        parameters = risk.layout.split(point)
        whole = risk.batch_losses(batch, parameters, order=0)[rows.to(risk.device)]
        try:
            alone = risk.batch_losses(_take(batch, rows, size), parameters, order=0)
        except (RuntimeError, ValueError, IndexError):
            return False
        if bool(whole.isfinite().all()):
            return bool((alone - whole).abs().max() <= _SAME_LOSS * whole.abs().max())
    return False


def has_rows(risk: EmpiricalRisk) -> bool:
    """Whether every part of every batch that can be cut has one row an example."""
    sizes = list(zip(risk.batches, risk.batch_sizes, strict=True))
    return not _listed(risk) and all(
        tensor.shape[:1] == (size,) for batch, size in sizes for tensor in tensors_of(batch)
    )


def _listed(risk: EmpiricalRisk) -> bool:
    """Whether all batches hold lists of plain values as long as they are: of every example's length, say."""
    sizes = zip(risk.batches, risk.batch_sizes, strict=True)
    return max(risk.batch_sizes, default=0) > 1 and all(size in _plain_lengths(batch) for batch, size in sizes)


def _plain_lengths(part: Any) -> set[int]:
    """Lengths of the lists in a batch that hold no tensors."""
    values = list(part.values()) if isinstance(part, Mapping) else part if isinstance(part, (tuple, list)) else []
    inner = set[int]().union(*map(_plain_lengths, values)) if values else set[int]()
    plain = isinstance(part, (tuple, list)) and not any(True for _ in tensors_of(part))
    return inner | {len(part)} if plain else inner


def own_gradients(risk: EmpiricalRisk, chosen: Tensor) -> Iterator[tuple[Tensor, PointwiseGradient]]:
    """Chunks of the chosen examples, each with the function that gives their own losses and gradients.

    Yields:
        Places (c,) in ``chosen`` of a chunk's examples, and its function of their points (c, n).

    Raises:
        ValueError: A tensor of a batch does not have one row per example.
    """
    for batch, places in _pieces(risk, chosen, examples_together(risk)):
        yield places, PointwiseGradient(risk, batch, len(places))


def examples_together(risk: EmpiricalRisk) -> int:
    """How many examples at points of their own go through the model at a time; 1 is a plain loop."""
    budget = _CPU_BUDGET if risk.device.type == "cpu" else torch.cuda.mem_get_info(risk.device)[0] // 4
    fitting = budget // (_VECTORS_PER_EXAMPLE * risk.num_params * risk.dtype.itemsize)
    return min(int(fitting), max(risk.batch_sizes, default=1)) if fitting >= _FEWEST_TOGETHER else 1


class PointwiseGradient:
    """Losses and gradients of the examples of one batch, each at a point of its own.

    The examples go through the model together (`torch.func.vmap` over the gradient of `EmpiricalRisk.batch_losses`);
    a model or loss that vmap does not support is differentiated example by example.
    """

    def __init__(self, risk: EmpiricalRisk, batch: Batch, size: int) -> None:
        self._risk, self._batch, self._size, self._together = risk, batch, size, size > 1

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (c,) and gradients (c, n) at the points (c, n)."""
        found = self._try_together(points) if self._together else None
        if found is not None:
            return found
        pairs = [self._one(index, point) for index, point in enumerate(points)]
        if len(pairs) == 1:  # where models are large, which need not be copied
            return pairs[0][0][None], pairs[0][1][None]
        return torch.stack([loss for loss, _ in pairs]), torch.stack([gradient for _, gradient in pairs])

    def _try_together(self, points: Tensor) -> tuple[Tensor, Tensor] | None:
        def loss(point: Tensor, tensors: list[Tensor]) -> Tensor:
            values = iter(tensors)
            example = _by_part(lambda parts: next(values)[None] if isinstance(parts[0], Tensor) else parts[0], [batch])
            return self._risk.batch_losses(example, self._risk.layout.split(point))[0]

        batch, tensors = self._batch, list(tensors_of(self._batch))
        try:
            with exact_products():
                gradients, losses = vmap(grad_and_value(loss))(points, tensors)
        except Exception:  # vmap's refusal, or a compiler's; an error of the model's own comes again from the loop
            self._together = False
            return None
        return losses.detach(), gradients.detach()

    def _one(self, index: int, point: Tensor) -> tuple[Tensor, Tensor]:
        example = _take(self._batch, torch.tensor([index]), self._size)
        gradient = torch.zeros_like(point)
        leaves = self._risk.layout.views(point, self._risk.dtype)
        with torch.enable_grad(), exact_products():
            losses = self._risk.batch_losses(example, leaves, order=1)
            if losses.requires_grad:  # the weights may be an expert's that the example does not use
                with self._risk.layout.adding_to(gradient, leaves):
                    torch.autograd.backward(losses[0], inputs=list(leaves.values()))
        return losses[0].detach(), gradient


def _pieces(risk: EmpiricalRisk, chosen: Tensor, limit: int) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of at most ``limit`` of the chosen examples, and their places in ``chosen``."""
    if _listed(risk):
        raise ValueError(
            "batches: expected one row per example in every tensor, got lists of plain values as long as the batches, "
            "which cannot be taken apart; make them tensors"
        )
    starts = (0, *accumulate(risk.batch_sizes))
    groups: dict[str, tuple[list[Batch], list[Tensor]]] = {}
    for batch, start, end in zip(risk.batches, starts[:-1], starts[1:], strict=True):
        (places,) = torch.where((chosen >= start) & (chosen < end))
        if len(places):
            piece = _take(batch, chosen[places] - start, end - start)
            pieces, where = groups.setdefault(_signature(piece), ([], []))
            pieces.append(piece)
            where.append(places)
    for pieces, where in groups.values():
        whole, places = _concatenate(pieces), torch.cat(where)
        for rows in torch.arange(len(places)).split(limit):
            yield _take(whole, rows, len(places)), places[rows]


def _take(batch: Batch, rows: Tensor, size: int) -> Batch:
    def take(parts: Sequence[Any]) -> Any:
        part = parts[0]
        if not isinstance(part, Tensor):
            return part
        if part.shape[:1] != (size,):
            raise ValueError(
                f"batches: expected {size} rows, one per example, in every tensor, got {tuple(part.shape)}"
            )
        return part[rows.to(part.device)]

    taken: Batch = _by_part(take, [batch])
    return taken


def _concatenate(pieces: Sequence[Batch]) -> Batch:
    whole: Batch = _by_part(lambda parts: torch.cat(list(parts)) if isinstance(parts[0], Tensor) else parts[0], pieces)
    return whole


def _signature(piece: Batch) -> str:
    """What two pieces must share to be put together: keys, shapes of a row, and everything that is no tensor."""
    return str(_by_part(lambda parts: parts[0].shape[1:] if isinstance(parts[0], Tensor) else parts[0], [piece]))


def _by_part(function: Callable[[Sequence[Any]], Any], batches: Sequence[Any]) -> Any:
    """Apply a function to the corresponding parts of batches of one kind, nested mappings and sequences included."""
    first = batches[0]
    if isinstance(first, Mapping):
        return like_mapping(first, {key: _by_part(function, [batch[key] for batch in batches]) for key in first})
    if isinstance(first, (tuple, list)):
        return like_sequence(first, [_by_part(function, parts) for parts in zip(*batches, strict=True)])
    return function(batches)
