"""Batches: what a model is called with, how many examples they hold, and loaders that leave some out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset, IterableDataset

from landscape.evaluation import random_numbers_kept
from landscape.losses import Batch
from landscape.showing import kind_of


def call_arguments(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments with which a model is called on a batch."""
    if isinstance(batch, Mapping):
        return (), {key: value for key, value in batch.items() if key != "labels"}
    return ((), dict(batch[0])) if isinstance(batch[0], Mapping) else ((batch[0],), {})


def names_labels(model: nn.Module) -> bool:
    """Whether the model has labels among its arguments, from which it computes a loss of its own."""
    return "labels" in inspect.signature(model.forward).parameters


def takes_labels(model: nn.Module) -> bool:
    """Whether the model can be given labels, also as one of any keywords that it may pass on."""
    parameters = inspect.signature(model.forward).parameters.values()
    return names_labels(model) or any(one.kind is one.VAR_KEYWORD for one in parameters)


def batch_size(batch: Batch) -> int:
    """Number of examples: the rows of the labels or targets, if the first tensor has an axis as long; else its own.

    A tensor without axes (a temperature) or with one row for all (position numbers, shape (1, T)) comes first only
    where there is no other. Where examples are runs of rows, the targets' rows count: another tensor has as many
    (offsets), or one of whole numbers says which example a row belongs to (the nodes of graphs).

    >>> batch_size((torch.zeros(5, 8, 3), torch.zeros(8)))  # time first, as recurrent layers have it
    8
    """
    packed = _packed(batch)
    if packed is not None:
        return int(packed.batch_sizes[0])
    tensors = [part for part in tensors_of(batch) if part.ndim]
    targets = batch.get("labels") if isinstance(batch, Mapping) else batch[-1]
    single = isinstance(targets, Tensor) and targets.shape[:1] == (1,)
    if single and any(part.shape[0] == 1 for part in tensors if part is not targets):
        return 1  # beside whatever all examples share
    first = next((part for part in tensors if part.shape[0] != 1), tensors[0] if tensors else None)
    if first is None:
        raise ValueError(f"batches: expected tensors with one row per example, got {type(batch).__name__} without any")
    if isinstance(targets, Tensor) and targets.ndim:
        others = [part for part in tensors if part is not targets]
        if targets.shape[0] in first.shape or _are_runs(others, len(first), len(targets)):
            return targets.shape[0]
    return first.shape[0]


def _packed(part: Any) -> PackedSequence | None:
    """The first packed sequence in nested mappings and sequences."""
    if isinstance(part, PackedSequence):
        return part
    values = part.values() if isinstance(part, Mapping) else part if isinstance(part, (tuple, list)) else ()
    return next((found for found in map(_packed, values) if found is not None), None)


def _are_runs(tensors: Sequence[Tensor], rows: int, count: int) -> bool:
    """Whether tensors say of ``rows`` rows to which of ``count`` examples each belongs."""
    if count >= rows:
        return False
    whole = [part for part in tensors if part.ndim == 1 and not (part.is_floating_point() or part.is_complex())]
    return any(len(part) == count or (len(part) == rows and int(part.max()) + 1 == count) for part in whole)


def tensors_of(part: Any) -> Iterator[Tensor]:
    """All tensors in nested mappings and sequences, in their order."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from tensors_of(value)
    elif isinstance(part, (tuple, list)):
        for value in part:
            yield from tensors_of(value)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``; those that are there already are not copied."""
    moved: Batch = map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))
    return moved


def map_tensors(part: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to every tensor in nested mappings and sequences; other values stay."""
    if isinstance(part, Tensor):
        return function(part)
    if isinstance(part, Mapping):
        return like_mapping(part, {key: map_tensors(value, function) for key, value in part.items()})
    if isinstance(part, (tuple, list)):
        return like_sequence(part, [map_tensors(value, function) for value in part])
    return part


def like_mapping(part: Mapping[str, Any], values: dict[str, Any]) -> Mapping[str, Any]:
    """A mapping of the same kind with other values: models read `BatchEncoding`'s by attribute, say."""
    if type(part) is dict:
        return values
    try:
        made: Any = copy.copy(part)
        made.update(values)
    except (TypeError, AttributeError):  # it cannot be written to
        return values
    return made


def like_sequence(part: Sequence[Any], values: list[Any]) -> Sequence[Any]:
    """A sequence of the same kind with other values: models tell lists from tuples."""
    if isinstance(part, PackedSequence) and not isinstance(values[0], Tensor):
        return tuple(values)  # what describes one is none
    if hasattr(part, "_fields"):
        return type(part)(*values)
    return values if isinstance(part, list) else tuple(values)


def _out_of_inference(batch: Any) -> Any:
    """A batch without tensors made in inference mode, which have no versions and no place in graphs."""
    if not any(tensor.is_inference() for tensor in tensors_of(batch)):
        return batch
    return map_tensors(batch, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)


def read_batches(batches: Any) -> list[Batch]:
    """All batches of an iterable of finite length, read once; no global random number is drawn for good.

    Raises:
        ValueError: It holds no batches, leaves out examples, or overwrites what it gave.
    """
    refuse_no_batches(batches)
    refuse_dropped_examples(batches)
    read: list[Batch] = []
    versions: list[list[int]] = []
    with random_numbers_kept():  # a data loader draws from the global generators
        for batch in map(_out_of_inference, batches):
            read.append(batch)
            versions.append([tensor._version for tensor in tensors_of(batch)])
    for index, (batch, before) in enumerate(zip(read, versions, strict=True)):
        if [tensor._version for tensor in tensors_of(batch)] != before:
            raise ValueError(
                f"batches: batch {index} was overwritten while later ones were read, as where an iterable fills one "
                "buffer again and again; yield copies (tensor.clone())"
            )
    return read


def refuse_no_batches(batches: Any) -> None:
    """Refuse what holds examples, but no batches of them.

    Raises:
        ValueError: A data set, a batch, a pair of tensors, or nothing that could be read.
    """
    expected = "expected an iterable of batches, (inputs, targets) or mappings with labels"
    pair = isinstance(batches, tuple) and len(batches) == 2 and all(isinstance(part, Tensor) for part in batches)
    if pair or isinstance(batches, Mapping):
        what = "a pair of tensors" if pair else "one mapping"
        raise ValueError(f"batches: {expected}, got {what}; put it into a list: [batch]")
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise ValueError(f"batches: {expected}, got the data set {type(batches).__name__}; pass DataLoader(dataset)")
    if isinstance(batches, Tensor | str) or not hasattr(batches, "__iter__"):
        raise ValueError(f"batches: {expected}, got {kind_of(batches)}")


def refuse_no_batch(batch: Any, index: int) -> None:
    """Refuse a batch that is neither a pair nor a mapping, or that holds arrays of other libraries.

    Raises:
        ValueError: It is.
    """
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif isinstance(batch, tuple | list):
        parts = [part for half in batch for part in (half.values() if isinstance(half, Mapping) else [half])]
        if len(batch) != 2:
            raise ValueError(
                f"batches: expected pairs (inputs, targets) or mappings, got {len(batch)} parts in batch {index}; pass "
                "({'name': inputs, …}, targets) for several inputs"
            )
    else:
        raise ValueError(
            f"batches: expected pairs (inputs, targets) or mappings, got {kind_of(batch)} as batch {index}; a loss "
            "needs targets"
        )
    foreign = [part for part in parts if type(part).__module__.partition(".")[0] in ("numpy", "jax", "tensorflow")]
    if foreign:
        raise ValueError(
            f"batches: expected tensors, got {kind_of(foreign[0])} in batch {index}; convert it by torch.as_tensor"
        )


def refuse_dropped_examples(batches: Any) -> None:
    """Refuse a data loader, or its batch sampler, that leaves out a last batch of fewer examples."""
    sampler = getattr(batches, "batch_sampler", None)
    dropping = next((source for source in (batches, sampler) if getattr(source, "drop_last", False)), None)
    if dropping is None or not dropping.batch_size or not hasattr(batches, "dataset"):
        return
    counted = getattr(sampler, "sampler", batches.dataset)
    examples = len(counted) if hasattr(counted, "__len__") else None
    if examples is None or examples % dropping.batch_size:
        left_out = "some" if examples is None else f"{examples % dropping.batch_size} of {examples}"
        raise ValueError(
            f"batches: the data loader has drop_last=True and would leave out {left_out} "
            "examples; use drop_last=False (a ragged last batch is weighted rightly)"
        )
