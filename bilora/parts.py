"""A part of a batch, for passes that need not see all of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.trainer_pt_utils import find_batch_size

from landscape.batches import like_mapping, like_sequence


def first_examples(inputs: Any, fraction: float) -> Any:
    """The first examples of a batch: ``fraction`` of them, rounded up, at least one.

    Args:
        inputs: What a model is called with; every tensor has one row per example, also in nested containers. Lists
            hold such tensors, or one entry per example.
        fraction: In (0, 1]; 1 is the batch as it is.

    Raises:
        ValueError: A tensor or list has another number of rows than the first tensor.

    >>> import torch
    >>> first_examples({"x": torch.arange(8).view(4, 2), "y": torch.arange(4)}, 0.3)["y"]
    tensor([0, 1])
    """
    if fraction == 1:
        return copy.copy(inputs)
    size = find_batch_size(inputs)
    if size is None:
        raise ValueError("batch: expected at least one tensor to take examples of, got none; use ascent_fraction=1")
    # A quotient such as 3 · (1/3) may come out a rounding above its integer.
    count = max(1, math.ceil(fraction * size - 1e-6))
    if isinstance(inputs, list | tuple):  # a batch of several inputs, not of examples
        return like_sequence(inputs, [_rows(part, count, size, f"inputs[{i}]") for i, part in enumerate(inputs)])
    return _rows(inputs, count, size, "")


def _rows(part: Any, count: int, size: int, name: str) -> Any:
    if isinstance(part, Mapping):
        cut = {key: _rows(inner, count, size, f"{name}.{key}".removeprefix(".")) for key, inner in part.items()}
        return like_mapping(part, cut)
    if isinstance(part, list | tuple):
        rows = [isinstance(inner, Tensor) and inner.shape[:1] == (size,) for inner in part]
        if part and all(rows):
            return like_sequence(part, [inner[:count] for inner in part])
        if len(part) != size:
            raise ValueError(
                f"{name}: expected {size} entries, one per example, to take a part of the batch; got {len(part)}; use "
                "ascent_fraction=1"
            )
        return like_sequence(part, list(part[:count]))
    if not isinstance(part, Tensor) or part.ndim == 0:
        return part
    if len(part) != size:
        raise ValueError(
            f"{name}: expected {size} rows, one per example, to take a part of the batch; got {tuple(part.shape)}; "
            "use ascent_fraction=1"
        )
    return part[:count]
