"""Thick-restart Lanczos with full reorthogonalisation."""

from __future__ import annotations

from typing import Literal

import torch

from landscape.algorithms.krylov import (
    check_request,
    eigen_result,
    orthogonalise,
    product,
    random_unit,
    relative_residuals,
)
from landscape.operators.base import SymmetricOperator
from landscape.results import EigenResult

Which = Literal["LA", "SA", "LM"]


def lanczos(
    operator: SymmetricOperator,
    k: int,
    *,
    which: Which = "LA",
    tol: float = 1e-4,
    max_matvecs: int = 1_000,
    basis_size: int | None = None,
    seed: int = 0,
) -> EigenResult:
    r"""Compute k extreme eigenpairs in a Krylov space that is restarted with its best Ritz vectors.

    The basis Q and the products W = HQ are kept in float64, every new vector is orthogonalised against the whole
    basis twice (so no ghost copies arise), and :math:`Q^\top W` is diagonalised. Residuals follow from W at no
    further product. At ``basis_size`` columns the space is compressed to the wanted half of the Ritz vectors plus
    the next Krylov vector (thick restart: Wu and Simon 2000, SIAM J. Matrix Anal. Appl. 22(2), section 3).

    Args:
        operator: Symmetric operator (n, n).
        k: Number of eigenpairs.
        which: ``LA`` largest algebraic, ``SA`` smallest algebraic, ``LM`` largest magnitude.
        tol: Relative residual at which a pair counts as converged.
        max_matvecs: Products after which the best pairs so far are returned.
        basis_size: Columns of Q; default ``max(2k + 10, 20)``. Memory: 2 · n · basis_size float64 numbers.
        seed: Seed of the start vector.

    Returns:
        Eigenpairs in descending order with residuals and converged flags.

    Raises:
        ValueError: k is not between 1 and n, or an option is unknown.
        FloatingPointError: A product is not finite, or the operator is not symmetric.

    >>> from landscape.operators import DenseOperator
    >>> result = lanczos(DenseOperator(torch.diag(torch.arange(6.0))), k=2)
    >>> [round(float(value), 4) for value in result.eigenvalues]
    [5.0, 4.0]
    """
    check_request(operator, k, tol)
    if which not in ("LA", "SA", "LM"):
        raise ValueError(f"which: expected 'LA', 'SA' or 'LM', got {which!r}")
    n = operator.shape[0]
    size = min(n, max(basis_size or max(2 * k + 10, 20), k + 2))
    generator = torch.Generator().manual_seed(seed)
    basis = torch.zeros(n, size, dtype=torch.float64, device=operator.device)
    products = torch.zeros_like(basis)
    columns, num_matvecs = 0, 0
    new = random_unit(operator, generator, basis[:, :0])
    while True:
        basis[:, columns] = new
        products[:, columns] = product(operator, new)
        columns, num_matvecs = columns + 1, num_matvecs + 1
        projected = basis[:, :columns].T @ products[:, :columns]
        values, rotation = torch.linalg.eigh((projected + projected.T) / 2)
        wanted = _order(values, which)
        chosen = wanted[: min(k, columns)]
        vectors, images = basis[:, :columns] @ rotation[:, chosen], products[:, :columns] @ rotation[:, chosen]
        residuals = relative_residuals(vectors, images, values[chosen])
        done = columns >= k and bool((residuals <= tol).all())
        if done or columns == n or num_matvecs >= max(max_matvecs, k):
            _check_symmetric(projected, operator.dtype)
            return eigen_result(operator, vectors, images, values[chosen], num_matvecs, tol)
        new = orthogonalise(products[:, columns - 1], basis[:, :columns])
        if new.norm() <= torch.finfo(operator.dtype).eps * values.abs().max():
            new = random_unit(operator, generator, basis[:, :columns])  # invariant subspace: look outside it
        new = new / new.norm()
        if columns == size:
            kept = wanted[: max(k + 1, size // 2)]
            compressed = basis @ rotation[:, kept], products @ rotation[:, kept]
            columns = len(kept)
            basis[:, :columns], products[:, :columns] = compressed


def _order(values: torch.Tensor, which: Which) -> torch.Tensor:
    key = {"LA": values, "SA": -values, "LM": values.abs()}[which]
    return torch.argsort(key, descending=True)


def _check_symmetric(projected: torch.Tensor, dtype: torch.dtype) -> None:
    # A float32 Hessian-vector product is symmetric to a few hundred units of rounding; 1e-2 is far above that.
    asymmetry = (projected - projected.T).abs().max()
    bound = max(1e-2, 1e3 * torch.finfo(dtype).eps) * projected.abs().max()
    if asymmetry > bound:
        raise FloatingPointError(
            f"operator: expected a symmetric operator, but Q'HQ differs from its transpose by {asymmetry:.3g}"
        )
