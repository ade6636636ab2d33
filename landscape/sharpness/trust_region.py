"""Worst case of the quadratic model of the loss in a ball: a trust-region problem, solved in a Krylov space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from landscape.algorithms.krylov import KrylovBasis, OutsideProbe
from landscape.algorithms.storage import Storage, affordable_vectors
from landscape.asking import expect_count, expect_number
from landscape.operators.base import SymmetricOperator, expect_operator
from landscape.risk import EmpiricalRisk
from landscape.showing import Shown, kind_of

_FEWEST = 20
"""Vectors that are kept whatever the free memory."""


@dataclass(frozen=True, repr=False)
class TrustRegionResult(Shown):
    r"""Maximiser of :math:`g^\top\epsilon + \frac12\epsilon^\top H\epsilon` in a ball.

    It is the maximum if :math:`(\mu I - H)\epsilon = g`, :math:`\mu \ge \max(0, \lambda_{\max}(H))` and
    :math:`\mu\,(\rho - \|\epsilon\|) = 0` (Conn, Gould and Toint 2000, corollary 7.2.2).

    Attributes:
        rho: Radius of the ball.
        predicted_rise: Value of the model at ``epsilon``, at least 0; a lower bound of the maximum, tight to second
            order in the residual.
        epsilon: (n,) the maximiser, in the operator's dtype.
        multiplier: :math:`\mu`; 0 for a maximiser inside the ball, infinite at radius 0.
        residual: :math:`\|(\mu I - H)\epsilon - g\|` over the larger of :math:`\|g\|` and :math:`\mu\rho`. The third
            condition holds to rounding by construction.
        converged: Whether the residual reached ``tol`` and no larger eigenvalue was left to look for.
        num_matvecs: Products with H that were computed.
        hard_case: Whether :math:`\mu` is the largest eigenvalue itself, to ``tol``: the maximiser then follows its
            eigenvector to the sphere, and the opposite sign gives the same value.
    """

    rho: float
    predicted_rise: float
    epsilon: Tensor
    multiplier: float
    residual: float
    converged: bool
    num_matvecs: int
    hard_case: bool


@dataclass(frozen=True)
class QuadraticGap:
    """Rise of the quadratic model and of the loss itself at one perturbation."""

    predicted_rise: float
    realised_rise: float

    @property
    def gap(self) -> float:
        """Realised minus predicted rise: 0 for a quadratic loss, of third order in the radius for a smooth one."""
        return self.realised_rise - self.predicted_rise


def trust_region_maximum(
    operator: SymmetricOperator,
    gradient: Tensor,
    rho: float,
    *,
    tol: float = 1e-4,
    max_matvecs: int = 100,
    storage: Storage = "auto",
    seed: int = 0,
) -> TrustRegionResult:
    r"""Maximise :math:`g^\top\epsilon + \frac12\epsilon^\top H\epsilon` over :math:`\|\epsilon\|_2\le\rho`.

    The problem is solved exactly in a space that grows by the residual, which from the start g is the Krylov space
    of Gould, Lucidi, Roma and Toint (1999, SIAM J. Optim. 9(2)). The basis Q is kept orthonormal in
    float64, and :math:`Q^\top HQ` is computed in full, so the space may be left where it closes. A small residual
    does not rule out a larger eigenvalue with an eigenvector orthogonal to g (the hard case), so a second sequence
    then starts at a random vector outside the space, until no eigenvalue above :math:`\mu` is left to look for
    (`landscape.algorithms.krylov.OutsideProbe`).

    Args:
        operator: H (n, n).
        gradient: g (n,).
        rho: Radius in the units of the weights, at least 0.
        tol: Residual at which the maximiser counts as converged.
        max_matvecs: Products after which the best point so far is returned; fewer where the basis would take more than
            a quarter of the free memory. Memory: 16 · n bytes each, 8 · n in float32.
        storage: Where the basis lies; see `landscape.algorithms.lanczos.lanczos`.
        seed: Seed of the random vectors.

    Returns:
        The maximiser with its multiplier, residual and cost.

    Raises:
        ValueError: rho is negative or not finite, the gradient has the wrong shape or is not finite, or an option is
            out of range.
        FloatingPointError: A product with the operator is not finite.

    >>> from landscape.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)))
    >>> result = trust_region_maximum(operator, torch.tensor([0.0, 1.0], dtype=torch.float64), rho=2.0)
    >>> result.hard_case, round(result.multiplier, 6), result.epsilon.abs()  # g/(2 − 1), then along (1, 0)
    (True, 2.0, tensor([1.7321, 1.0000], dtype=torch.float64))
    """
    _check(operator, gradient, rho, tol, max_matvecs)
    n = operator.shape[0]
    g = gradient.detach().to(operator.device, torch.float64)
    if rho == 0:
        centre = torch.zeros(n, dtype=operator.dtype, device=operator.device)
        return TrustRegionResult(rho, 0.0, centre, math.inf, 0.0, True, 0, False)
    capacity = min(n, max_matvecs)
    if storage == "auto":
        capacity = min(capacity, max(_FEWEST, affordable_vectors(operator) // 2))
    basis = KrylovBasis(operator, capacity, seed, storage=storage)
    probe = OutsideProbe(basis, tol)
    basis.grow(g)
    while True:
        values, rotation = np.linalg.eigh(basis.projected.numpy())
        coefficients = rotation.T @ basis.along(g).cpu().numpy()
        solution, multiplier, shift = _maximise(values, coefficients, rho)
        weights = torch.from_numpy(rotation @ solution).to(operator.device)
        epsilon = basis.combined(weights)
        residual = multiplier * epsilon - basis.image(weights) - g
        scale = max(float(g.norm()), multiplier * rho)
        relative = float(residual.norm()) / scale if scale > 0 else 0.0
        stationary = relative <= tol
        converged = stationary and probe.rules_out(multiplier)
        if converged or basis.size == basis.capacity:
            break
        if stationary:
            probe.step()
        else:
            basis.grow(residual)
    return TrustRegionResult(
        rho=rho,
        predicted_rise=float(coefficients @ solution + 0.5 * values @ solution**2),
        epsilon=epsilon.to(operator.dtype),
        multiplier=multiplier,
        residual=relative,
        converged=converged,
        num_matvecs=basis.num_matvecs,
        hard_case=multiplier > 0 and shift * rho <= tol * scale,
    )


def quadratic_gap(risk: EmpiricalRisk, result: TrustRegionResult) -> QuadraticGap:
    """Compare the rise that the quadratic model predicts with that of the loss, by two evaluations.

    Args:
        risk: The loss; ``result`` must come from its Hessian and gradient at its own weights.
        result: Maximiser of the model.

    Returns:
        Both rises and their gap, in the units of the loss.
    """
    theta = risk.theta
    realised = risk.loss(theta + result.epsilon.to(theta)) - risk.loss(theta)
    return QuadraticGap(result.predicted_rise, realised)


def _maximise(
    values: NDArray[np.float64], coefficients: NDArray[np.float64], rho: float
) -> tuple[NDArray[np.float64], float, float]:
    r"""Exact maximiser for a diagonal H with ascending ``values``, with its multiplier.

    The secular equation :math:`\|c/(\mu - d)\| = \rho` is solved for the distance of :math:`\mu` to its least
    admissible value, which keeps its digits next to the pole, as :math:`1/\|\cdot\| = 1/\rho`, which is nearly linear
    (Conn, Gould and Toint 2000, section 7.3).

    Returns:
        Coordinates of the maximiser, the multiplier, and its distance to the larger of 0 and the top value.
    """
    least = max(float(values[-1]), 0.0)
    gaps = least - values

    def point(shift: float) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", over="ignore"):
            return np.divide(coefficients, gaps + shift, out=np.zeros_like(coefficients), where=coefficients != 0)

    def excess(shift: float) -> float:
        return 1 / rho - 1 / float(np.linalg.norm(point(shift)))

    solution = point(0.0)
    inner = float(np.linalg.norm(solution))
    if inner <= rho:
        if least > 0:
            solution[-1] += math.sqrt(rho**2 - inner**2)
        return solution, least, 0.0
    # The pole at the top value bounds the root from below, the norm of all coefficients from above.
    low = abs(coefficients[-1]) / rho * (1 - 1e-9) if gaps[-1] == 0 else 0.0
    high = float(np.linalg.norm(coefficients)) / rho * (1 + 1e-9)
    shift = float(brentq(excess, low, high, xtol=1e-300, rtol=1e-14, maxiter=2000))
    return point(shift), least + shift, shift


def _check(operator: SymmetricOperator, gradient: Tensor, rho: float, tol: float, max_matvecs: int) -> None:
    expect_operator(operator)
    n = operator.shape[0]
    if not isinstance(gradient, Tensor) or gradient.shape != (n,):
        got = tuple(gradient.shape) if isinstance(gradient, Tensor) else kind_of(gradient)
        raise ValueError(f"gradient: expected shape ({n},) as the operator has, got {got}")
    for name, number in (("rho", rho), ("tol", tol)):
        expect_number(name, number)
    expect_count("max_matvecs", max_matvecs)
    if not bool(gradient.isfinite().all()):
        raise ValueError("gradient: expected finite entries, got NaN or infinity; check the loss at this point")
    if not (rho >= 0 and math.isfinite(rho)):
        raise ValueError(f"rho: expected a finite radius >= 0, got {rho}")
    if not tol > 0:
        raise ValueError(f"tol: expected a positive relative residual, got {tol}")
