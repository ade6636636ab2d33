"""Power iteration with deflation."""

from __future__ import annotations

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


def power_iteration(
    operator: SymmetricOperator,
    k: int,
    *,
    tol: float = 1e-4,
    max_matvecs: int = 1_000,
    seed: int = 0,
) -> EigenResult:
    r"""Compute the k eigenpairs of largest magnitude, one after the other.

    Each vector starts at random and follows :math:`v \leftarrow Hv/\|Hv\|`, kept orthogonal to the pairs already
    found. A Rayleigh-Ritz step in the span of all k vectors closes the run; it needs no further product. An
    eigenvalue that shares its magnitude with one of the other sign cannot be reached this way: the flags say so.

    Args:
        operator: Symmetric operator (n, n).
        k: Number of eigenpairs.
        tol: Relative residual at which the iteration moves on to the next pair.
        max_matvecs: Products shared evenly among the k pairs; at least two for each.
        seed: Seed of the start vectors.

    Returns:
        Eigenpairs in descending order of the eigenvalue, with residuals and converged flags.

    Raises:
        ValueError: k is not between 1 and n.
        FloatingPointError: A product is not finite.

    >>> from landscape.operators import DenseOperator
    >>> result = power_iteration(DenseOperator(torch.diag(torch.tensor([-4.0, 2.0, 1.0]))), k=2)
    >>> [round(float(value), 4) for value in result.eigenvalues]
    [2.0, -4.0]
    """
    check_request(operator, k, tol)
    n = operator.shape[0]
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.zeros(n, k, dtype=torch.float64, device=operator.device)
    products = torch.zeros_like(vectors)
    num_matvecs = 0
    for index in range(k):
        found = vectors[:, :index]
        vector = random_unit(operator, generator, found)
        remaining = max(2, (max_matvecs - num_matvecs) // (k - index))
        for _ in range(remaining):
            image = product(operator, vector)
            num_matvecs += 1
            vectors[:, index], products[:, index] = vector, image
            deflated = orthogonalise(image, found)
            value = vector @ deflated
            residual = relative_residuals(vector[:, None], deflated[:, None], value[None])
            if residual <= tol or deflated.norm() == 0:
                break
            vector = deflated / deflated.norm()
    projected = vectors.T @ products
    values, rotation = torch.linalg.eigh((projected + projected.T) / 2)
    return eigen_result(operator, vectors @ rotation, products @ rotation, values, num_matvecs, tol)
