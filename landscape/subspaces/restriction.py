"""How much of an operator's curvature a subspace sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from landscape.algorithms import lanczos
from landscape.asking import expect_floating
from landscape.operators import ProjectedOperator, SymmetricOperator
from landscape.showing import Shown
from landscape.subspaces import Subspace, space_of


@dataclass(frozen=True, repr=False)
class RestrictedCurvature(Shown):
    r"""Dominant eigenvalues of an operator inside a subspace.

    Attributes:
        eigenvalues: (k,) :math:`\mu_i` of PHP, by falling magnitude, float64.
        ratios: (k,) :math:`|\mu_i|/|\lambda_i|`, between 0 and 1 up to the residuals: the singular values of a
            compression interlace (Horn and Johnson 1991, Topics in Matrix Analysis, corollary 3.1.3).
        residuals: (k,) relative residuals of the restricted pairs.
        num_matvecs: Products with H.
    """

    table: ClassVar[tuple[str, ...]] = ("eigenvalues", "ratios", "residuals")

    eigenvalues: Tensor
    ratios: Tensor
    residuals: Tensor
    num_matvecs: int


def restricted_curvature(
    operator: SymmetricOperator,
    subspace: Subspace | Tensor,
    eigenvalues: Tensor,
    *,
    start: Tensor | None = None,
    tol: float = 1e-4,
    seed: int = 0,
) -> RestrictedCurvature:
    r"""Eigenvalues of largest magnitude of :math:`PHP`, P projecting onto the subspace, against those of H.

    Where the subspace has fewer than k dimensions, the remaining eigenvalues are 0.

    Args:
        operator: H (n, n).
        subspace: Where the curvature is looked at: an object with ``project``, or an orthonormal basis (n, k).
        eigenvalues: (k,) the k eigenvalues :math:`\lambda_i` of H of largest magnitude, in any order; not zero.
        start: Vectors (n, m), such as the eigenvectors of H, whose projections begin the search.
        tol: Relative residual.
        seed: Seed of the search.

    Raises:
        ValueError: ``eigenvalues`` is no non-empty vector, or holds a zero.

    >>> from landscape.operators import DenseOperator
    >>> from landscape.subspaces import BasisSubspace
    >>> H = DenseOperator(torch.diag(torch.tensor([8.0, 2.0, 1.0])))
    >>> space = BasisSubspace(torch.eye(3)[:, 1:])
    >>> [round(ratio, 3) for ratio in restricted_curvature(H, space, torch.tensor([8.0, 2.0])).ratios.tolist()]
    [0.25, 0.5]
    """
    subspace = space_of(subspace)
    expect_floating("eigenvalues", eigenvalues)
    full = eigenvalues.double().abs()
    if full.ndim != 1 or not len(full) or not bool((full > 0).all()):
        raise ValueError(f"eigenvalues: expected (k,) numbers that are not zero, got {eigenvalues.tolist()}")
    begin = None if start is None else torch.stack([subspace.project(vector) for vector in start.T], dim=1)
    found = lanczos(ProjectedOperator(operator, subspace), len(full), which="LM", tol=tol, start=begin, seed=seed)
    order = found.eigenvalues.abs().argsort(descending=True)
    inside = found.eigenvalues[order]
    ratios = inside.abs() / full.sort(descending=True).values
    return RestrictedCurvature(inside, ratios, found.residuals[order], found.num_matvecs)
