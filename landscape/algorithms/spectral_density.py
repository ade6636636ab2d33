"""Spectral density by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from landscape.algorithms.krylov import Callback, KrylovBasis, norm_of
from landscape.algorithms.results import SpectralDensity
from landscape.algorithms.storage import Storage
from landscape.asking import expect_callable, expect_count, expect_number, expect_seed, seeded
from landscape.operators.base import SymmetricOperator, expect_operator

_ONE_VALUE = 1e-6
"""Range of eigenvalues over the largest one's size up to which they count as one."""

_MOST_POINTS = 200_000


def spectral_density(
    operator: SymmetricOperator,
    *,
    num_steps: int = 50,
    num_probes: int = 4,
    width: float | None = None,
    num_points: int = 1_000,
    storage: Storage = "auto",
    seed: int = 0,
    callback: Callback | None = None,
) -> SpectralDensity:
    r"""Estimate :math:`\phi(t) = \frac1n \sum_i \mathcal N(t;\,\lambda_i, \sigma^2)`, the smoothed spectrum.

    For a random unit vector v, m Lanczos steps give a tridiagonal T whose eigenvalues and squared first eigenvector
    entries form a Gauss quadrature of v's spectral measure, exact for polynomials of degree 2m − 1; the mean over
    probes estimates the density (Golub and Welsch 1969; Lin, Saad and Yang 2016, SIAM Review 58(1), section 3.2;
    Ghorbani et al. 2019, arXiv 1901.10159). Vectors are orthogonalised against all earlier ones of their probe.

    Args:
        operator: Symmetric operator (n, n).
        num_steps: Lanczos steps m of each probe, at most n.
        num_probes: Random vectors; at least 2, for the error band.
        width: Standard deviation σ of the Gaussian, in units of the eigenvalues; default 1 % of their range.
        num_points: Points of the grid, which covers the range found and 5 σ on either side; more where neighbours would
            be farther apart than σ/2, so that the density's integral stays 1.
        storage: Where a probe's vectors lie; see `landscape.algorithms.lanczos.lanczos`. Memory: 8 · n bytes a step,
            4 · n in float32.
        seed: Seed of the probes.
        callback: Called as ``callback(num_matvecs, 0.0)`` after every product; a true answer ends the run with the
            probes so far (two at least).

    Returns:
        Density on a grid with its standard error over probes, and the quadrature itself.

    Raises:
        ValueError: A count or the width is out of range, or the width too small for a grid.
        FloatingPointError: A product is not finite.

    >>> from landscape.operators import DenseOperator
    >>> result = spectral_density(DenseOperator(torch.diag(torch.tensor([1.0, 3.0]))), num_steps=2, num_probes=2)
    >>> round(float(torch.trapezoid(result.density, result.grid)), 3)
    1.0
    """
    expect_operator(operator)
    for name, count, least in (
        ("num_steps", num_steps, 1),
        ("num_probes", num_probes, 2),
        ("num_points", num_points, 2),
    ):
        expect_count(name, count, least=least)
    expect_seed(seed)
    expect_callable("callback", callback)
    check_width(width)
    generator = seeded(seed)
    probes: list[tuple[Tensor, Tensor]] = []
    num_matvecs = 0
    for probe in range(num_probes):
        basis = KrylovBasis(
            operator, min(num_steps, operator.shape[0]), generator, keep_products=False, storage=storage
        )
        ritz_values, shares, stopped = _quadrature(basis, num_matvecs, callback)
        del basis  # the next one asks how much memory is free
        num_matvecs += len(ritz_values)
        if stopped and probe > 1 and len(ritz_values) < len(probes[0][0]):
            break  # half a probe would count as much as a whole one
        probes.append((ritz_values, shares))
        if stopped and probe >= 1:
            break
    return smoothed_density(probes, width=width, num_points=num_points, num_matvecs=num_matvecs)


def check_width(width: float | None) -> None:
    """Refuse a width that smooths nothing.

    Raises:
        ValueError: It is no positive number.
    """
    if width is None:
        return
    expect_number("width", width)
    if not (width > 0 and math.isfinite(width)):
        raise ValueError(f"width: expected a positive standard deviation, got {width}")


def smoothed_density(
    probes: Sequence[tuple[Tensor, Tensor]], *, width: float | None, num_points: int, num_matvecs: int
) -> SpectralDensity:
    """The density on a grid, from each probe's quadrature nodes and weights.

    Raises:
        ValueError: The width is no positive number, or too small for a grid.
    """
    check_width(width)
    low, high = (float(f(torch.cat([nodes for nodes, _ in probes]))) for f in (torch.min, torch.max))
    size = max(abs(low), abs(high))
    spread = high - low if high - low > _ONE_VALUE * size else 0.0  # what is left are the products' errors
    sigma = width or 0.01 * (spread or size or 1.0)
    needed = 2 * (high - low + 10 * sigma) / sigma + 2
    if needed > _MOST_POINTS:
        raise ValueError(
            f"width: expected at least {4 * (high - low) / _MOST_POINTS:.3g} for eigenvalues from {low:.3g} to "
            f"{high:.3g}, got {width}: the grid would need {needed:.3g} points"
        )
    grid = torch.linspace(low - 5 * sigma, high + 5 * sigma, max(num_points, int(needed)), dtype=torch.float64)
    curves = torch.stack([_smooth(grid, nodes, weights, sigma) for nodes, weights in probes])
    return SpectralDensity(
        grid=grid,
        density=curves.mean(dim=0),
        stderr=curves.std(dim=0) / math.sqrt(len(curves)),
        width=sigma,
        nodes=tuple(nodes for nodes, _ in probes),
        weights=tuple(weights for _, weights in probes),
        num_matvecs=num_matvecs,
    )


def _quadrature(basis: KrylovBasis, before: int, callback: Callback | None) -> tuple[Tensor, Tensor, bool]:
    """Nodes and weights (sum 1) of the Gauss quadrature from a random vector, and whether it was ended."""
    basis.grow(None)
    while True:
        stopped = bool(callback and callback(before + basis.size, 0.0))
        if stopped or basis.size == basis.capacity:
            break
        rest = basis.outside(basis.last)
        rounding = torch.finfo(basis.operator.dtype).eps * float(basis.projected.diagonal().abs().max())
        if norm_of(rest) <= rounding:  # the vector's measure has no more points
            break
        basis.grow(rest)
    ritz_values, vectors = torch.linalg.eigh(basis.projected)
    return ritz_values, vectors[0].square(), stopped


def _smooth(grid: Tensor, nodes: Tensor, weights: Tensor, sigma: float) -> Tensor:
    """Sum of Gaussians at the nodes (p,)."""
    heights = torch.exp(-0.5 * ((grid[:, None] - nodes) / sigma).square())
    return heights @ weights / (sigma * math.sqrt(2 * math.pi))
