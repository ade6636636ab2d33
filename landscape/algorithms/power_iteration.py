"""Power iteration with deflation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from landscape.algorithms.eigenpairs import (
    check_request,
    eigen_result,
    relative_residuals,
    resolution,
    start_columns,
)
from landscape.algorithms.krylov import Callback, orthogonalise, product, random_unit
from landscape.algorithms.results import EigenResult
from landscape.asking import expect_callable, expect_count, seeded
from landscape.operators.base import SymmetricOperator

_PROBE_STEPS = 8


def power_iteration(
    operator: SymmetricOperator,
    k: int,
    *,
    tol: float = 1e-4,
    max_matvecs: int = 1_000,
    start: Tensor | None = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> EigenResult:
    r"""Compute the k eigenpairs of largest magnitude, one after the other.

    Each vector starts at random and follows :math:`v \leftarrow Hv/\|Hv\|`, kept orthogonal to the pairs already
    found. The eigenpair is read off the last two iterates by a Rayleigh-Ritz step (Parlett 1998, section 11.3), whose
    products are known already: two eigenvalues of equal size and opposite sign, between which the iterates swing
    forever, both lie in that plane. A Rayleigh-Ritz step in the span of all k vectors closes the run.

    Args:
        operator: Symmetric operator (n, n).
        k: Number of eigenpairs.
        tol: Relative residual at which the iteration moves on to the next pair.
        max_matvecs: Products shared evenly among the k pairs; at least two for each.
        start: Vectors (n, m) to begin with, the i-th for the i-th pair; random ones follow. Default: random. Iterates
            from a start without a part along a larger pair never meet that pair, and a random one is nearly an
            eigenvector of a bulk that is far from 0. So a short Krylov space from a random vector (at most eight
            further products) looks for larger pairs: those smaller than what it meets are not converged.
        seed: Seed of the random start vectors.
        callback: Called as ``callback(num_matvecs, residual)`` after every product (for a progress bar); a true answer
            ends the search for the pair at hand and for all that follow.

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
    expect_count("max_matvecs", max_matvecs)
    expect_callable("callback", callback)
    n = operator.shape[0]
    generator = seeded(seed)
    vectors = torch.zeros(n, k, dtype=torch.float64, device=operator.device)
    products = torch.zeros_like(vectors)
    num_matvecs = 0
    starts = start_columns(operator, start)
    scale, stopped = 0.0, False
    for index in range(k):
        found = vectors[:, :index]
        vector = _begin(operator, starts[:, index : index + 1], found, generator)
        plane = images = vectors[:, :0]
        for _ in range(max(2, (max_matvecs - num_matvecs) // (k - index))):
            image = product(operator, vector).double()
            num_matvecs += 1
            plane, images = _two_newest(plane, images, vector, image)
            deflated = torch.stack([orthogonalise(column, found) for column in images.T], dim=1)
            values, rotation = torch.linalg.eigh(_symmetric(plane.T @ deflated))
            chosen = int(values.abs().argmax())
            ritz = rotation[:, chosen : chosen + 1]
            scale = max(scale, float(values.abs().max()))
            smallest = resolution(operator, scale, tol)
            residual = relative_residuals(plane @ ritz, deflated @ ritz, values[chosen : chosen + 1], smallest)
            direction = orthogonalise(image, found)
            stopped = stopped or bool(callback and callback(num_matvecs, float(residual)))
            if stopped or residual <= tol or direction.norm() == 0:
                break
            vector = direction / direction.norm()
        vectors[:, index], products[:, index] = (plane @ ritz)[:, 0], (images @ ritz)[:, 0]
    values, rotation = torch.linalg.eigh(_symmetric(vectors.T @ products))
    vectors, products = vectors @ rotation, products @ rotation
    result = eigen_result(operator, vectors, products, values, num_matvecs, tol)
    if stopped:  # nobody has looked outside
        return replace(result, converged=torch.zeros_like(result.converged))
    if not bool(result.converged.any()):
        return result
    outside, spent = _largest_outside(operator, vectors, generator)
    sizes, rounding = result.eigenvalues.abs(), resolution(operator, scale, tol) * tol
    confirmed = (sizes >= (1 - tol) * outside) | (outside <= rounding)
    return replace(result, converged=result.converged & confirmed, num_matvecs=num_matvecs + spent)


def _largest_outside(operator: SymmetricOperator, found: Tensor, generator: torch.Generator) -> tuple[float, int]:
    """Size of the largest Ritz value in a Krylov space from a random vector beside those found, and its products."""
    n, k = found.shape
    basis, images = found[:, :0], found[:, :0]
    for _ in range(min(_PROBE_STEPS, n - k)):
        direction = random_unit(operator, generator, torch.cat([found, basis], dim=1))
        if images.shape[1]:
            rest = orthogonalise(images[:, -1], torch.cat([found, basis], dim=1))
            norm = rest.norm()
            direction = rest / norm if norm > 1e-10 * images[:, -1].norm() else direction
        basis = torch.cat([basis, direction[:, None]], dim=1)
        images = torch.cat([images, product(operator, direction).double()[:, None]], dim=1)
    if not basis.shape[1]:
        return 0.0, 0
    return float(torch.linalg.eigvalsh(_symmetric(basis.T @ images)).abs().max()), basis.shape[1]


def _begin(operator: SymmetricOperator, start: Tensor, found: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vector orthogonal to the pairs found, along ``start`` (n, 1 or 0), unless that lies in their span."""
    if start.shape[1] == 0:
        return random_unit(operator, generator, found)
    vector = orthogonalise(start[:, 0], found)
    norm = vector.norm()
    return vector / norm if norm > 1e-6 else random_unit(operator, generator, found)


def _two_newest(plane: Tensor, images: Tensor, vector: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal basis of the newest iterate and the one before it, with its products; one column if they agree."""
    if plane.shape[1] == 0:
        return vector[:, None], image[:, None]
    # The first column of the plane is the iterate before.
    overlap = plane[:, 0] @ vector
    rest = plane[:, 0] - overlap * vector
    norm = rest.norm()
    if norm < 1e-6:  # the division below would leave no correct digits
        return vector[:, None], image[:, None]
    rest_image = (images[:, 0] - overlap * image) / norm
    return torch.stack([vector, rest / norm], dim=1), torch.stack([image, rest_image], dim=1)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
