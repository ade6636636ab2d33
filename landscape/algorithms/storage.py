"""Where the vectors of a Krylov basis lie, and products with them in float64."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from landscape.memory import SHARE, free_bytes
from landscape.operators.base import SymmetricOperator

_PIECE_BYTES = 2**26
_OF_A_PRODUCT = 8
"""Vectors that a product with a Hessian may take beside the basis."""

Storage = Literal["auto", "float64", "float32", "cpu", "disk"]
"""Where a basis lies: in float64 or float32 on the operator's device, in float64 in main memory, or in a file."""


def chosen_storage(operator: SymmetricOperator, num_vectors: int, storage: Storage) -> Storage:
    """What ``auto`` means: the first of these that, with a product's vectors, takes at most a quarter of free memory.

    In float64; in float32, for a float32 operator; on disk.

    Raises:
        ValueError: The storage is unknown.
    """
    if storage not in get_args(Storage):
        raise ValueError(f"storage: expected one of {', '.join(get_args(Storage))}, got {storage!r}")
    if storage != "auto":
        return storage
    affordable = affordable_vectors(operator)
    if num_vectors * 8 <= affordable * operator.dtype.itemsize:
        return "float64"
    return "float32" if operator.dtype == torch.float32 and num_vectors <= affordable else "disk"


def affordable_vectors(operator: SymmetricOperator) -> int:
    """How many vectors of the operator's precision fit into a quarter of the free memory beside a product's own."""
    fitting = int(SHARE * free_bytes(operator.device)) // (operator.shape[0] * operator.dtype.itemsize)
    return max(0, fitting - _OF_A_PRODUCT)


class Rows:
    """Vectors (count, n) in some precision at some place, multiplied in float64 a piece at a time.

    Rows, not columns: memory that is never written to is never taken from the machine. Sums of rows are taken in
    float64 and come out in the precision of the rows.

    Args:
        capacity: Most vectors.
        operator: Its n and device count; products come out on its device.
        storage: Not ``auto``.

    Raises:
        OSError: The disk is full; see `tempfile.gettempdir` for where the file lies.
    """

    def __init__(self, capacity: int, operator: SymmetricOperator, storage: Storage) -> None:
        self.dtype = {"float32": torch.float32, "disk": operator.dtype}.get(storage, torch.float64)
        self._capacity, self._length, self._device = capacity, operator.shape[0], operator.device
        place = torch.device("cpu") if storage in ("cpu", "disk") else operator.device
        self._place = place
        self._table: _Table
        if storage == "disk":
            self._table = _InFile(self._length, self.dtype)
        else:
            self._table = _InMemory(torch.empty((capacity, self._length), dtype=self.dtype, device=place))
        # What is float64 in memory needs no pieces.
        self._whole = storage != "disk" and self.dtype == torch.float64

    def __len__(self) -> int:
        return self._capacity

    def __setitem__(self, index: int, vector: Tensor) -> None:
        self._table.write([index], slice(0, self._length), vector[None])

    def __getitem__(self, index: int) -> Tensor:
        return self._table.read([index], slice(0, self._length))[0]

    def inner(self, vector: Tensor, count: int) -> Tensor:
        """Products (count,) float64 of the first rows with a vector (n,)."""
        vector = vector.to(self._place)
        products = torch.zeros(count, dtype=torch.float64, device=self._place)
        for piece in self._pieces(count):
            products += self._table.read(range(count), piece).double() @ vector[piece].double()
        return products.to(self._device)

    def combine(self, coefficients: Tensor, which: Sequence[int] | int) -> Tensor:
        """Sums (n, m) of rows, the first so many or those named, with coefficients (rows, m)."""
        chosen = range(which) if isinstance(which, int) else which
        coefficients = coefficients.to(self._place)
        if self._whole:
            return (coefficients.T @ self._table.read(chosen, slice(0, self._length))).T.to(self._device)
        sums = torch.empty(coefficients.shape[1], self._length, dtype=self.dtype, device=self._place)
        for piece in self._pieces(len(coefficients)):
            sums[:, piece] = (coefficients.T @ self._table.read(chosen, piece).double()).to(self.dtype)
        return sums.T.to(self._device)

    def rotate(self, coefficients: Tensor) -> None:
        """Put the sums with coefficients (rows, m) in the place of the first m rows; a piece of memory at a time."""
        coefficients, (size, kept) = coefficients.to(self._place), coefficients.shape
        for piece in self._pieces(size, whole=False):
            sums = coefficients.T @ self._table.read(range(size), piece).double()
            self._table.write(range(kept), piece, sums.to(self.dtype))

    def _pieces(self, count: int, *, whole: bool = True) -> Iterator[slice]:
        """Parts of the rows' length, so that so many of them in float64 are few bytes."""
        length = self._length if whole and self._whole else max(1, _PIECE_BYTES // (8 * max(1, count)))
        return (slice(start, min(start + length, self._length)) for start in range(0, self._length, length))


class _Table(Protocol):
    """Rows of numbers of which parts can be read and written."""

    def read(self, rows: Sequence[int], piece: slice) -> Tensor: ...

    def write(self, rows: Sequence[int], piece: slice, values: Tensor) -> None: ...


class _InMemory:
    def __init__(self, values: Tensor) -> None:
        self._values = values

    def read(self, rows: Sequence[int], piece: slice) -> Tensor:
        if len(rows) == 1:
            return self._values[rows[0], piece][None]
        chosen = slice(rows.start, rows.stop) if isinstance(rows, range) else list(rows)
        return self._values[chosen, piece]

    def write(self, rows: Sequence[int], piece: slice, values: Tensor) -> None:
        for row, value in zip(rows, values, strict=True):
            self._values[row, piece] = value


class _InFile:
    """Rows in a file that has no name, so that nothing is left of it however the process ends."""

    def __init__(self, length: int, dtype: torch.dtype) -> None:
        self._length, self._dtype = length, dtype
        self._file = tempfile.TemporaryFile(prefix="landscape-")  # noqa: SIM115  # open as long as it is needed

    def read(self, rows: Sequence[int], piece: slice) -> Tensor:
        values = torch.empty(len(rows), piece.stop - piece.start, dtype=self._dtype)
        for value, row in zip(values, rows, strict=True):
            self._file.seek(self._offset(row, piece))
            self._file.readinto(value.view(torch.uint8).numpy().data)
        return values

    def write(self, rows: Sequence[int], piece: slice, values: Tensor) -> None:
        for row, value in zip(rows, values.detach().to("cpu", self._dtype).contiguous(), strict=True):
            self._file.seek(self._offset(row, piece))
            self._file.write(value.view(torch.uint8).numpy().data)

    def _offset(self, row: int, piece: slice) -> int:
        return (row * self._length + piece.start) * self._dtype.itemsize
