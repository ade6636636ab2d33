"""A part of a batch, for passes that need not see all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.trainer_pt_utils import find_batch_size


def first_examples(inputs: Mapping[str, Any], fraction: float) -> dict[str, Any]:
    """The first examples of a batch: ``fraction`` of them, rounded up, at least one.

    Args:
        inputs: What a model is called with; every tensor has one row per example, also in nested containers.
        fraction: In (0, 1]; 1 is the batch as it is.

    Raises:
        ValueError: A tensor has another number of rows than the first one.

    >>> import torch
    >>> first_examples({"x": torch.arange(8).view(4, 2), "y": torch.arange(4)}, 0.3)["y"]
    tensor([0, 1])
    """
    if fraction == 1:
        return dict(inputs)
    size = find_batch_size(inputs)
    if size is None:
        raise ValueError("batch: expected at least one tensor to take examples of, got none; use ascent_fraction=1")
    # A quotient such as 3 · (1/3) may come out a rounding above its integer.
    count = max(1, math.ceil(fraction * size - 1e-6))
    return {name: _rows(part, count, size, name) for name, part in inputs.items()}


def _rows(part: Any, count: int, size: int, name: str) -> Any:
    if isinstance(part, Mapping):
        return {key: _rows(inner, count, size, f"{name}.{key}") for key, inner in part.items()}
    if isinstance(part, list | tuple):
        return type(part)(_rows(inner, count, size, name) for inner in part)
    if not isinstance(part, Tensor) or part.ndim == 0:
        return part
    if len(part) != size:
        raise ValueError(
            f"{name}: expected {size} rows, one per example, to take a part of the batch; got {tuple(part.shape)}; "
            "use ascent_fraction=1"
        )
    return part[:count]
