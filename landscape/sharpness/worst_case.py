"""Worst-case loss in a ball around a minimum, by projected gradient ascent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.results import SharpnessResult
from landscape.risk import EmpiricalRisk
from landscape.subspaces import BasisSubspace, Subspace


def worst_case_sharpness(
    risk: EmpiricalRisk,
    rho: float,
    *,
    steps: int = 20,
    restarts: int = 1,
    subspace: Subspace | Tensor | None = None,
    start: Tensor | None = None,
    seed: int = 0,
) -> SharpnessResult:
    r"""Search :math:`\max_{\|\epsilon\|_2\le\rho} L(\theta+\epsilon)` over the whole data set.

    Each start follows :math:`\epsilon \leftarrow \Pi(\epsilon + \alpha\,g/\|g\|)` with :math:`\Pi` the projection
    onto the ball (and the subspace) and :math:`\alpha` beginning at :math:`2\rho`; a step that does not raise the
    loss is taken back and halves :math:`\alpha`, so the loss never falls; at :math:`\rho/1000` it ends. The first
    start is SAM's one-step point :math:`\rho\,g/\|g\|` (Foret et al. 2021, equation 2) or ``start``, whichever
    has the larger loss; the others are random points of the sphere. What is returned is a **lower bound** of the
    maximum.

    Args:
        risk: The mean loss over the data.
        rho: Radius, in the units of the weights, at least 0.
        steps: Points visited from each start at most; each costs one forward-backward pass.
        restarts: Number of starts, the first included.
        subspace: Directions allowed: an orthonormal basis (n, k) or an object with ``project``. Default: all.
        start: Point (n,) of the ball that rivals SAM's as the first start. With the maximiser at a smaller radius,
            the result cannot fall as the radius grows.
        seed: Seed of the random starts.

    Returns:
        The largest loss met and where, with SAM's one-step loss beside it.

    Raises:
        ValueError: rho is negative or not finite, or a count is below 1.
        FloatingPointError: The loss is not finite at the centre.
    """
    if not (rho >= 0 and math.isfinite(rho)):
        raise ValueError(f"rho: expected a finite radius >= 0, got {rho}")
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps, restarts: expected counts of at least 1, got {steps} and {restarts}")
    space = BasisSubspace(subspace) if isinstance(subspace, Tensor) else subspace
    ascent = _Ascent(risk, rho, space)
    generator = torch.Generator().manual_seed(seed)
    starts = [ascent.on_sphere(ascent.centre.gradient)]
    for _ in range(restarts - 1 if rho > 0 else 0):
        noise = torch.randn(risk.num_params, dtype=torch.float64, generator=generator)
        starts.append(ascent.on_sphere(noise.to(risk.device, risk.dtype)))
    one_step, *others = [ascent.visit(epsilon) for epsilon in starts]
    rival = one_step if start is None else max(one_step, ascent.visit(start), key=lambda point: point.loss)
    runs = [ascent.climb(point, steps - 1) for point in (rival, *others)]
    best = max((ascent.centre, *runs), key=lambda point: point.loss)
    return SharpnessResult(
        rho=rho,
        loss=ascent.centre.loss,
        worst_loss=best.loss,
        epsilon=best.epsilon,
        one_step_loss=one_step.loss,
        start_losses=tuple(point.loss for point in runs),
        num_passes=ascent.num_passes,
    )


@dataclass(frozen=True)
class _Point:
    """A perturbation with its loss and gradient, the latter inside the subspace."""

    epsilon: Tensor
    loss: float
    gradient: Tensor


class _Ascent:
    """Projected ascent in one ball; counts its passes."""

    def __init__(self, risk: EmpiricalRisk, rho: float, space: Subspace | None) -> None:
        self.risk, self.rho, self.space = risk, rho, space
        self.theta = risk.theta
        self.num_passes = 0
        self.centre = self.visit(torch.zeros_like(self.theta))
        if not math.isfinite(self.centre.loss):
            raise FloatingPointError(f"the loss at the centre of the ball is {self.centre.loss}: nothing to compare")

    def visit(self, epsilon: Tensor) -> _Point:
        """Loss and gradient at a point, brought into the ball and the subspace first."""
        epsilon = self._into_ball(self._project(epsilon))
        self.num_passes += 1
        loss, gradient = self.risk.loss_and_gradient(self.theta + epsilon)
        return _Point(epsilon, math.inf if math.isnan(loss) else loss, self._project(gradient))

    def climb(self, best: _Point, steps: int) -> _Point:
        """The point with the largest loss met on the way up; an infinite loss cannot be exceeded."""
        step_size = 2 * self.rho
        for _ in range(steps):
            if not math.isfinite(best.loss) or step_size <= 1e-3 * self.rho:
                break
            candidate = self.visit(best.epsilon + step_size * _unit(best.gradient))
            if candidate.loss > best.loss:
                best = candidate
            else:
                step_size /= 2
        return best

    def on_sphere(self, direction: Tensor) -> Tensor:
        """The sphere's point in a direction of the subspace."""
        return self.rho * _unit(self._project(direction))

    def _project(self, vector: Tensor) -> Tensor:
        return vector if self.space is None else self.space.project(vector)

    def _into_ball(self, epsilon: Tensor) -> Tensor:
        norm = float(epsilon.double().norm())
        return epsilon if norm <= self.rho else epsilon * (self.rho / norm)


def _unit(vector: Tensor) -> Tensor:
    norm = vector.double().norm()
    return vector if norm == 0 else (vector.double() / norm).to(vector.dtype)
