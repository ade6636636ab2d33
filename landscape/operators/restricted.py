"""An operator as a subspace sees it."""

from __future__ import annotations

from torch import Tensor

from landscape.operators.base import SymmetricOperator, expect_operator
from landscape.showing import kind_of
from landscape.subspaces import BasisSubspace, Subspace, space_of


class RestrictedOperator(SymmetricOperator):
    r"""Restriction :math:`Q^\top H Q` (k, k) to the span of orthonormal columns.

    Its eigenvalues are the Ritz values of H in the subspace: none lies outside H's own range, and an eigenvector c
    stands for the direction Qc.

    Args:
        operator: H (n, n).
        basis: Q (n, k), orthonormal columns.

    Raises:
        ValueError: The basis is not orthonormal or has another number of rows than H.

    >>> import torch
    >>> from landscape.operators.base import DenseOperator
    >>> inner = DenseOperator(torch.diag(torch.tensor([1.0, 2.0, 4.0])))
    >>> RestrictedOperator(inner, torch.eye(3)[:, 1:]).to_dense()
    tensor([[2., 0.],
            [0., 4.]])
    """

    def __init__(self, operator: SymmetricOperator, basis: Tensor) -> None:
        expect_operator(operator)
        if not isinstance(basis, Tensor):
            raise ValueError(f"basis: expected a tensor of shape ({operator.shape[0]}, k), got {kind_of(basis)}")
        if basis.ndim != 2 or basis.shape[0] != operator.shape[0]:
            raise ValueError(f"basis: expected shape ({operator.shape[0]}, k), got {tuple(basis.shape)}")
        self.operator, self.basis = operator, BasisSubspace(basis).basis.to(operator.dtype)
        self.shape = (basis.shape[1], basis.shape[1])
        self.dtype, self.device = operator.dtype, operator.device

    def matvec(self, vector: Tensor) -> Tensor:
        return self.basis.T @ self.operator.matvec(self.basis @ vector)

    def rounding(self) -> float:
        """Of H's products: those in a direction in which the loss is flat are rounding."""
        return self.operator.rounding()


class ProjectedOperator(SymmetricOperator):
    r"""Compression :math:`P H P` (n, n) with the orthogonal projector P onto a subspace without an explicit basis.

    Its non-zero eigenvalues are those of the restriction, its eigenvectors lie in the subspace; n minus the
    subspace's dimension eigenvalues are zero.

    Args:
        operator: H (n, n).
        subspace: What P projects onto: an object with ``project``, or an orthonormal basis (n, k).
    """

    def __init__(self, operator: SymmetricOperator, subspace: Subspace | Tensor) -> None:
        expect_operator(operator)
        self.operator, self.subspace = operator, space_of(subspace)
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device

    def matvec(self, vector: Tensor) -> Tensor:
        return self.subspace.project(self.operator.matvec(self.subspace.project(vector)))

    def rounding(self) -> float:
        """Of H's products: those in a direction in which the loss is flat are rounding."""
        return self.operator.rounding()
