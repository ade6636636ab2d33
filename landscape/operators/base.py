"""Symmetric operators known only by their products with vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator as ScipyLinearOperator
from torch import Tensor

from landscape.asking import expect_floating, expect_vector
from landscape.risk import EmpiricalRisk
from landscape.showing import kind_of


class SymmetricOperator(ABC):
    """A symmetric matrix (n, n) that offers products only.

    Attributes:
        shape: (n, n).
        dtype: Precision of the products.
        device: Where the vectors live.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    def __repr__(self) -> str:
        size, dtype = self.shape[0], str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({size} × {size}, {dtype} on {self.device})"

    @abstractmethod
    def matvec(self, vector: Tensor) -> Tensor:
        """Product with a vector (n,)."""

    def matmat(self, matrix: Tensor) -> Tensor:
        """Product with the columns of a matrix (n, m)."""
        _expect_columns(matrix, self.shape[0])
        return torch.stack([self.matvec(column) for column in matrix.unbind(dim=1)], dim=1)

    def to_dense(self, *, max_size: int = 20_000) -> Tensor:
        """All n² entries, column by column.

        Raises:
            ValueError: n exceeds ``max_size``, a guard against filling the memory by accident.
        """
        n = self.shape[0]
        if n > max_size:
            raise ValueError(
                f"to_dense: n = {n} exceeds max_size = {max_size}; the matrix would take "
                f"{n * n * self.dtype.itemsize / 2**30:.1f} GiB. Raise max_size if that is meant"
            )
        return self.matmat(torch.eye(n, dtype=self.dtype, device=self.device))

    def rounding(self) -> float:
        """Size of products with unit vectors below which they are rounding; 0 where it is not known."""
        return 0.0

    def to_scipy(self) -> ScipyLinearOperator:
        """View as a `scipy.sparse.linalg.LinearOperator` in the operator's precision."""
        numpy_dtype = torch.empty(0, dtype=self.dtype).numpy().dtype

        def product(vector: NDArray[np.floating]) -> NDArray[np.floating]:
            if np.iscomplexobj(vector):
                raise ValueError(
                    "vector: expected real numbers, got complex ones; pass real and imaginary part by turns"
                )
            column = torch.as_tensor(np.ascontiguousarray(vector.reshape(-1)), dtype=self.dtype, device=self.device)
            return self.matvec(column).cpu().numpy()

        return ScipyLinearOperator(self.shape, matvec=product, rmatvec=product, dtype=numpy_dtype)


def expect_operator(operator: Any) -> None:
    """Refuse what is no `SymmetricOperator`.

    Raises:
        ValueError: It is none; the message says how to make one.
    """
    if isinstance(operator, SymmetricOperator):
        return
    fix = "HessianOperator(EmpiricalRisk(model, batches))"
    if isinstance(operator, EmpiricalRisk):
        fix = "HessianOperator(risk), or GGNOperator(risk)"
    elif isinstance(operator, Tensor):
        fix = "DenseOperator(matrix)"
    raise ValueError(f"operator: expected a SymmetricOperator, got {kind_of(operator)}; pass {fix}")


class DenseOperator(SymmetricOperator):
    """An explicit symmetric matrix (n, n) behind the operator interface.

    >>> DenseOperator(torch.diag(torch.tensor([2.0, 1.0]))).matvec(torch.ones(2))
    tensor([2., 1.])
    """

    def __init__(self, matrix: Tensor) -> None:
        expect_floating("matrix", matrix)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix: expected a square matrix, got shape {tuple(matrix.shape)}")
        self.matrix = matrix
        self.shape = (matrix.shape[0], matrix.shape[0])
        self.dtype, self.device = matrix.dtype, matrix.device

    def matvec(self, vector: Tensor) -> Tensor:
        expect_vector("vector", vector, self.shape[0])
        return self.matrix @ vector.to(self.matrix)

    def matmat(self, matrix: Tensor) -> Tensor:
        _expect_columns(matrix, self.shape[0])
        return self.matrix @ matrix.to(self.matrix)


def _expect_columns(matrix: Any, size: int) -> None:
    if not isinstance(matrix, Tensor) or matrix.ndim != 2 or len(matrix) != size:
        got = f"shape {tuple(matrix.shape)}" if isinstance(matrix, Tensor) else kind_of(matrix)
        raise ValueError(f"matrix: expected a tensor of vectors as columns, shape ({size}, m), got {got}")
