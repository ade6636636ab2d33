"""Where a search keeps the vectors that it does not work on: in memory, or in files that are gone when it ends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from landscape.memory import SHARE, free_bytes

Storage = Literal["auto", "memory", "disk"]
"""``memory`` of the device, a temporary file a vector, or the first while it takes a quarter of the free memory."""

Kept = Callable[[], Tensor]
"""Gives back a vector that was put away."""


class Shelf:
    """Puts vectors away and gives them back, bit for bit.

    Files have no name from the moment they are made, so that nothing is left of them however the process ends; each
    takes its place on disk until the vector is dropped.

    Args:
        storage: Where.
        expected_bytes: What a search may keep at most, by which ``auto`` decides.
        device: Of the vectors.

    Attributes:
        storage: ``memory`` or ``disk``.

    Raises:
        ValueError: The storage is unknown.
        OSError: The disk is full; see `tempfile.gettempdir` for where the files go.

    >>> shelf = Shelf("disk")
    >>> kept = shelf.put(torch.tensor([0.1, 0.2, 0.3]))
    >>> kept()
    tensor([0.1000, 0.2000, 0.3000])
    """

    def __init__(
        self,
        storage: Storage,
        expected_bytes: int = 0,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> None:
        if storage not in get_args(Storage):
            raise ValueError(f"storage: expected one of {', '.join(get_args(Storage))}, got {storage!r}")
        if storage == "auto":
            storage = "memory" if expected_bytes <= SHARE * free_bytes(device) else "disk"
        self.storage: Storage = storage

    def put(self, vector: Tensor) -> Kept:
        """Keep a vector, which nobody may change."""
        return held(vector) if self.storage == "memory" else _InFile(vector)


def held(vector: Tensor) -> Kept:
    """A vector that is in memory anyway."""
    return lambda: vector


class _InFile:
    """A vector in a file without a name."""

    def __init__(self, vector: Tensor) -> None:
        self._dtype, self._shape, self._device = vector.dtype, vector.shape, vector.device
        self._file = tempfile.TemporaryFile(prefix="landscape-")  # noqa: SIM115  # open as long as it is needed
        self._file.write(_bytes(vector.detach().cpu().contiguous()))
        self._file.flush()

    def __call__(self) -> Tensor:
        vector = torch.empty(self._shape, dtype=self._dtype)
        self._file.seek(0)
        self._file.readinto(_bytes(vector))
        return vector.to(self._device)


def _bytes(vector: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return vector.view(torch.uint8).numpy().data
