"""Where the vectors of a Krylov basis lie, and products with them in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from landscape.memory import SHARE, free_bytes
from landscape.operators.base import SymmetricOperator

_PIECE_BYTES = 2**26
Storage = Literal["auto", "float64", "float32", "cpu"]
"""Where a basis lies: in float64 or float32 on the operator's device, or in float64 in main memory."""


def chosen_storage(operator: SymmetricOperator, num_vectors: int, storage: Storage) -> Storage:
    """What ``auto`` means: float64, or float32 for a float32 operator whose basis would take a quarter of the memory.

    Raises:
        ValueError: The storage is unknown.
    """
    if storage not in get_args(Storage):
        raise ValueError(f"storage: expected one of {', '.join(get_args(Storage))}, got {storage!r}")
    if storage != "auto":
        return storage
    fits = num_vectors * operator.shape[0] * 8 <= SHARE * free_bytes(operator.device)
    return "float64" if fits or operator.dtype == torch.float64 else "float32"


def affordable_vectors(operator: SymmetricOperator) -> int:
    """How many vectors of the operator's precision fit into a quarter of the free memory."""
    return int(SHARE * free_bytes(operator.device)) // (operator.shape[0] * operator.dtype.itemsize)


class Rows:
    """Vectors (count, n) in some precision at some place, multiplied in float64 a piece at a time.

    Rows, not columns: memory that is never written to is never taken from the machine. Sums of rows are taken in
    float64 and come out in the precision of the rows.

    Args:
        capacity: Most vectors.
        operator: Its n and device count; products come out on its device.
        storage: Not ``auto``.
    """

    def __init__(self, capacity: int, operator: SymmetricOperator, storage: Storage) -> None:
        dtype = torch.float32 if storage == "float32" else torch.float64
        place = torch.device("cpu") if storage == "cpu" else operator.device
        self._rows = torch.empty((capacity, operator.shape[0]), dtype=dtype, device=place)
        self._device = operator.device
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __setitem__(self, index: int, vector: Tensor) -> None:
        self._rows[index] = vector

    def __getitem__(self, index: int) -> Tensor:
        return self._rows[index]

    def inner(self, vector: Tensor, count: int) -> Tensor:
        """Products (count,) float64 of the first rows with a vector (n,)."""
        vector = vector.to(self._rows.device)
        if self.dtype == torch.float64:
            return (self._rows[:count] @ vector.double()).to(self._device)
        products = torch.zeros(count, dtype=torch.float64, device=self._rows.device)
        for piece in self._pieces(count):
            products += self._rows[:count, piece].double() @ vector[piece].double()
        return products.to(self._device)

    def combine(self, coefficients: Tensor, which: Sequence[int] | int) -> Tensor:
        """Sums (n, m) of rows, the first so many or those named, with coefficients (rows, m)."""
        chosen = slice(which) if isinstance(which, int) else list(which)
        coefficients = coefficients.to(self._rows.device)
        if self.dtype == torch.float64:
            return (coefficients.T @ self._rows[chosen]).T.to(self._device)
        sums = self._rows.new_empty(coefficients.shape[1], self._rows.shape[1])
        for piece in self._pieces(len(coefficients)):
            sums[:, piece] = (coefficients.T @ self._rows[chosen, piece].double()).to(self.dtype)
        return sums.T.to(self._device)

    def rotate(self, coefficients: Tensor) -> None:
        """Put the sums with coefficients (rows, m) in the place of the first m rows; a piece of memory at a time."""
        coefficients, (size, kept) = coefficients.to(self._rows.device), coefficients.shape
        for piece in self._pieces(size):
            self._rows[:kept, piece] = (coefficients.T @ self._rows[:size, piece].double()).to(self.dtype)

    def _pieces(self, count: int) -> Iterator[slice]:
        """Parts of the rows' length, so that so many of them in float64 are few bytes."""
        length = max(1, _PIECE_BYTES // (8 * max(1, count)))
        return (slice(start, start + length) for start in range(0, self._rows.shape[1], length))
