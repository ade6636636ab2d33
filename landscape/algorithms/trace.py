"""Trace estimators with standard errors: Hutchinson, Hutch++ and XTrace."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from landscape.algorithms.krylov import Callback, product
from landscape.algorithms.results import TraceResult
from landscape.asking import expect_callable, expect_count, expect_number, expect_seed, seeded
from landscape.operators.base import SymmetricOperator, expect_operator

Method = Literal["hutchinson", "hutch++", "xtrace"]

FEWEST_SAMPLES = 10
"""Samples before a standard error is believed; below, it is itself too random to stop on."""

_ROUNDING = 30
"""Directions shorter than this many times the rounding of a product are no part of the range."""

_SHARED_SKETCH = 1.5
"""XTrace's samples share all but one vector of their sketches: over seeds the mean spreads by up to this much more."""

_DEPENDENT = 1e-10
"""Relative singular value below which columns depend on each other."""


def estimate_trace(
    operator: SymmetricOperator,
    *,
    method: Method = "hutch++",
    tol: float = 0.02,
    max_matvecs: int = 300,
    seed: int = 0,
    callback: Callback | None = None,
) -> TraceResult:
    r"""Estimate tr(H) from products with random vectors, until the standard error is at most ``tol`` · |estimate|.

    It has to be so at two checks in a row: at the first, a standard error that is small by chance would end the run.

    - ``hutchinson``: mean of :math:`z^\top H z` over random signs z (Hutchinson 1989).
    - ``hutch++``: the trace on the range Q of a sketch HS exactly, Hutchinson on the rest (I − QQᵀ)H(I − QQᵀ); a
      third of the products each for HS, HQ and the samples (Meyer et al. 2021, arXiv 2010.09649, algorithm 1). As
      the sketch grows, earlier samples are projected anew, which needs no products.
    - ``xtrace``: every vector serves as sketch for all others and as sample for itself, averaged (Epperly, Tropp and
      Webber 2024, arXiv 2301.07825, section 2.1).

    Args:
        operator: Symmetric operator (n, n).
        method: Estimator; ``hutch++`` and ``xtrace`` pay off when few eigenvalues carry the trace.
        tol: Relative standard error at which to stop.
        max_matvecs: Products after which the estimate so far is returned. Where n products or fewer do not suffice
            and n more are allowed, the trace is computed exactly.
        seed: Seed of the random vectors.
        callback: Called as ``callback(num_matvecs, relative_stderr)`` as the estimate improves; a true answer ends
            the run.

    Returns:
        Estimate with its standard error, the number of products, and whether ``tol`` was reached.

    Raises:
        ValueError: An option is unknown or out of range.
        FloatingPointError: A product is not finite.

    >>> from landscape.operators import DenseOperator
    >>> result = estimate_trace(DenseOperator(torch.diag(torch.arange(30.0))), method="hutchinson")
    >>> result.trace, result.stderr  # z'Dz = tr D for a diagonal D and random signs
    (435.0, 0.0)
    """
    estimators = {"hutchinson": _hutchinson, "hutch++": _hutch_plus_plus, "xtrace": _xtrace}
    if method not in estimators:
        raise ValueError(f"method: expected one of {', '.join(estimators)}; got {method!r}")
    expect_number("tol", tol)
    expect_count("max_matvecs", max_matvecs)
    expect_seed(seed)
    expect_callable("callback", callback)
    if not tol > 0:
        raise ValueError(f"tol: expected a positive relative standard error, got {tol}")
    if max_matvecs < 3 * FEWEST_SAMPLES:
        raise ValueError(f"max_matvecs: expected at least {3 * FEWEST_SAMPLES}, got {max_matvecs}")
    expect_operator(operator)
    n = operator.shape[0]
    probe = _Probe(operator, tol, min(max_matvecs, n), seed, callback)
    trace, stderr = 0.0, math.inf
    if n > 3 * FEWEST_SAMPLES:
        trace, stderr = estimators[method](probe)
    if not probe.settled and not probe.stopped and probe.num_matvecs + n <= max_matvecs:
        identity = torch.eye(n, dtype=torch.float64, device=operator.device)
        trace, stderr = float(probe.products(identity).trace()), 0.0
    return TraceResult(trace, stderr, probe.num_matvecs, probe.settled or stderr == 0, tol, method)


class _Probe:
    """Random vectors, counted products and the decision to stop, common to the estimators."""

    def __init__(
        self, operator: SymmetricOperator, tol: float, max_matvecs: int, seed: int, callback: Callback | None
    ) -> None:
        self.operator, self.tol, self.max_matvecs, self.callback = operator, tol, max_matvecs, callback
        self.n, self.num_matvecs, self.stopped = operator.shape[0], 0, False
        self._before, self.settled = math.inf, False
        self.noise = torch.finfo(operator.dtype).eps
        self._generator = seeded(seed)

    def signs(self, count: int) -> Tensor:
        """Random signs (n, count)."""
        draws = torch.randint(0, 2, (count, self.n), generator=self._generator)
        return (2 * draws - 1).to(self.operator.device, torch.float64).T

    def sphere(self, count: int) -> Tensor:
        """Columns (n, count) uniform on the sphere of radius √n."""
        draws = torch.randn(count, self.n, dtype=torch.float64, generator=self._generator).to(self.operator.device).T
        return draws * (math.sqrt(self.n) / draws.norm(dim=0))

    def products(self, columns: Tensor) -> Tensor:
        """H times each column."""
        self.num_matvecs += columns.shape[1]
        images = [product(self.operator, column).double() for column in columns.T]
        return torch.stack(images, dim=1) if images else columns

    def is_done(self, trace: float, stderr: float, next_cost: int) -> bool:
        """Whether the estimate is good enough, or the next improvement would cost more than is allowed."""
        relative = stderr / abs(trace) if trace else (math.inf if stderr else 0.0)
        self.stopped = bool(self.callback and self.callback(self.num_matvecs, relative))
        before, self._before = self._before, relative
        self.settled = max(relative, before) <= self.tol
        return self.stopped or self.settled or self.num_matvecs + next_cost > self.max_matvecs


def _hutchinson(probe: _Probe) -> tuple[float, float]:
    samples = probe.signs(0)[0]
    while True:
        signs = probe.signs(FEWEST_SAMPLES)
        samples = torch.cat([samples, (signs * probe.products(signs)).sum(dim=0)])
        trace, stderr = _mean(samples)
        if probe.is_done(trace, stderr, FEWEST_SAMPLES):
            return trace, stderr


def _hutch_plus_plus(probe: _Probe) -> tuple[float, float]:
    signs, images = probe.signs(0), probe.signs(0)
    basis, basis_images = probe.signs(0), probe.signs(0)
    while True:
        new = _new_columns(probe.products(probe.signs(FEWEST_SAMPLES)), basis, probe.noise)
        basis, basis_images = torch.cat([basis, new], dim=1), torch.cat([basis_images, probe.products(new)], dim=1)
        fresh = probe.signs(FEWEST_SAMPLES)
        signs, images = torch.cat([signs, fresh], dim=1), torch.cat([images, probe.products(fresh)], dim=1)
        inner, coordinates = basis.T @ basis_images, basis.T @ signs
        # (z - Qc)'H(z - Qc) with c = Q'z
        cross, quadratic = coordinates * (basis.T @ images), coordinates * (inner @ coordinates)
        samples = (signs * images).sum(dim=0) - 2 * cross.sum(dim=0) + quadratic.sum(dim=0)
        mean, stderr = _mean(samples)
        trace = float(inner.trace()) + mean
        if probe.is_done(trace, stderr, 3 * FEWEST_SAMPLES):
            return trace, stderr


def _xtrace(probe: _Probe) -> tuple[float, float]:
    step = FEWEST_SAMPLES // 2
    vectors, images = probe.sphere(0), probe.sphere(0)
    basis, basis_images = probe.sphere(0), probe.sphere(0)
    while True:
        fresh = probe.sphere(step)
        fresh_images = probe.products(fresh)
        new = _new_columns(fresh_images, basis, probe.noise)
        vectors, images = torch.cat([vectors, fresh], dim=1), torch.cat([images, fresh_images], dim=1)
        basis, basis_images = torch.cat([basis, new], dim=1), torch.cat([basis_images, probe.products(new)], dim=1)
        trace, stderr = _mean(_leave_one_out(vectors, images, basis, basis_images))
        stderr *= _SHARED_SKETCH
        if vectors.shape[1] >= FEWEST_SAMPLES and probe.is_done(trace, stderr, 2 * step):
            return trace, stderr


def _leave_one_out(vectors: Tensor, images: Tensor, basis: Tensor, basis_images: Tensor) -> Tensor:
    r"""XTrace's samples (m,): for each vector, the trace on the range of all other images plus its own sample.

    The range of the images without the i-th is the range of all less the direction :math:`s_i`, the normalised i-th
    column of :math:`(R^+)^\top` in the basis Q, R = QᵀY. An image that depends on the others takes nothing away:
    then :math:`(R^+R)_{ii} < 1` and :math:`s_i = 0`.
    """
    n = len(vectors)
    triangle = basis.T @ images
    lengths = images.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    scaled = triangle / lengths
    inverse = torch.linalg.pinv(scaled, rtol=_DEPENDENT)
    needed = (inverse * scaled.T).sum(dim=1) > 1 - math.sqrt(_DEPENDENT)
    missing = inverse.T * needed
    missing = missing / missing.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    inner = basis.T @ basis_images
    inner = (inner + inner.T) / 2
    coordinates = basis.T @ vectors
    along = (missing * coordinates).sum(dim=0)
    kept = coordinates - missing * along
    on_range = inner.trace() - (missing * (inner @ missing)).sum(dim=0)
    sample = (vectors * images).sum(dim=0) - 2 * (kept * triangle).sum(dim=0) + (kept * (inner @ kept)).sum(dim=0)
    # The part of a sphere's point outside a d-dimensional space has squared norm n - d on average.
    dimensions = n - basis.shape[1] + needed.double()
    outside = n - coordinates.square().sum(dim=0) + along.square()
    return on_range + sample * dimensions / outside


def _new_columns(columns: Tensor, basis: Tensor, noise: float) -> Tensor:
    """Orthonormal basis of what ``columns`` add to the span of ``basis``, without what is rounding of the products.

    Args:
        columns: (n, m) products.
        basis: (n, j), orthonormal.
        noise: Relative rounding of a product.
    """
    rest = columns - basis @ (basis.T @ columns)
    left, singular, _ = torch.linalg.svd(rest, full_matrices=False)
    new = left[:, singular > _ROUNDING * noise * columns.norm()]
    for _ in range(2):  # a short rest is not orthogonal to the basis until it has been projected at its own length
        new = torch.linalg.qr(new - basis @ (basis.T @ new))[0]
    return new


def _mean(samples: Tensor) -> tuple[float, float]:
    count = len(samples)
    return float(samples.mean()), float(samples.std() * math.sqrt((count - 1) / (count - 3) / count))
