"""Eigenpairs as requested and as returned: checks of a request, starts, residuals and when they count as small."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from landscape.algorithms.krylov import orthogonalise
from landscape.algorithms.results import EigenResult
from landscape.asking import expect_number
from landscape.operators.base import SymmetricOperator, expect_operator
from landscape.showing import kind_of

_PIECE = 2**20
"""Entries of vectors that are looked at together: what is made of them takes no vector's memory."""

_ROUNDING = 10
"""Rounding of a product, in units of the precision times the largest eigenvalue."""


def check_request(operator: SymmetricOperator, k: int, tol: float) -> None:
    """Refuse an impossible request before any product is computed."""
    expect_operator(operator)
    n = operator.shape[0]
    if operator.dtype.itemsize < 4:
        raise ValueError(
            f"operator: expected products in float32 or float64, whose rounding is small, got {operator.dtype}"
        )
    if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k <= n:
        raise ValueError(f"k: expected 1 <= k <= n = {n} eigenpairs, got {k}")
    expect_number("tol", tol)
    if not tol > 0:
        raise ValueError(f"tol: expected a positive relative residual, got {tol}")


def start_columns(operator: SymmetricOperator, start: Tensor | None) -> Tensor:
    """Orthonormal columns (n, m) of ``start`` in its order, without those that depend on earlier ones.

    Raises:
        ValueError: ``start`` has another number of rows, or is not finite.
    """
    n = operator.shape[0]
    columns = torch.zeros(n, 0, dtype=torch.float64, device=operator.device)
    if start is None:
        return columns
    if not isinstance(start, Tensor) or start.is_complex():
        got = start.dtype if isinstance(start, Tensor) else kind_of(start)
        raise ValueError(f"start: expected a tensor of real vectors, shape ({n}, m), got {got}")
    if start.ndim != 2 or start.shape[0] != n or not bool(start.isfinite().all()):
        raise ValueError(f"start: expected finite vectors of shape ({n}, m), got {tuple(start.shape)}")
    eps = torch.finfo(start.dtype).eps if start.is_floating_point() else 0.0
    for vector in start.to(operator.device, torch.float64).T:
        rest = orthogonalise(vector, columns)
        if rest.norm() > 100 * eps * vector.norm():
            columns = torch.cat([columns, (rest / rest.norm())[:, None]], dim=1)
    return columns


def resolution(operator: SymmetricOperator, scale: float, tol: float) -> float:
    """Size of an eigenvalue below which a residual of ``tol`` relative to it would be rounding.

    Args:
        operator: Its precision counts.
        scale: Largest eigenvalue in size.
        tol: Relative residual asked for.
    """
    flat = operator.rounding() if scale <= operator.rounding() else 0.0
    return max(_ROUNDING * torch.finfo(operator.dtype).eps * scale, flat) / tol


def relative_residuals(vectors: Tensor, products: Tensor, values: Tensor, smallest: float) -> Tensor:
    r""":math:`\|Hv-\lambda v\|/\max(|\lambda|, s)` for each column, s = ``smallest``; 0 where all is 0."""
    values = values.to(vectors.device)
    pieces = zip(vectors.split(_PIECE), products.split(_PIECE), strict=True)
    norms = [(images.double() - part.double() * values.double()).norm(dim=0) for part, images in pieces]
    absolute = torch.stack(norms).norm(dim=0).to(values)
    sizes = values.abs().clamp(min=smallest)
    return absolute / torch.where(sizes == 0, 1.0, sizes)


def eigen_result(
    operator: SymmetricOperator,
    vectors: Tensor,
    products: Tensor,
    values: Tensor,
    num_matvecs: int,
    tol: float,
    *,
    scale: float | None = None,
    confirmed: Tensor | None = None,
) -> EigenResult:
    """Assemble a result, in descending order, with residuals taken from the products.

    Args:
        operator: Its precision counts.
        vectors: (n, k).
        products: (n, k), H times each.
        values: (k,).
        num_matvecs: Products so far.
        tol: Relative residual asked for.
        scale: Largest eigenvalue in size; default: the largest of these.
        confirmed: (k,) whether no eigenvalue that belongs before the pair's can have been missed; default: all.
    """
    values = values.to(vectors.device)
    order = torch.argsort(values, descending=True)
    confirmed = torch.ones_like(values, dtype=torch.bool) if confirmed is None else confirmed.to(values.device)
    values, confirmed = values[order], confirmed[order]
    if len(order) > 1:  # which copies them
        vectors, products = vectors[:, order], products[:, order]
    smallest = resolution(operator, scale or float(values.abs().max()), tol)
    residuals = relative_residuals(vectors, products, values, smallest)
    converged = (residuals <= tol) & confirmed
    flat = operator.rounding() if (scale or float(values.abs().max())) <= operator.rounding() else 0.0
    return EigenResult(values, vectors.to(operator.dtype), residuals, converged, num_matvecs, tol, smallest, flat=flat)
