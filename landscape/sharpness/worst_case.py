"""Worst-case loss in a ball around a minimum, by projected gradient ascent."""

from __future__ import annotations

import math

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
    loss is taken back and halves :math:`\alpha`, so the loss never falls. The first start is SAM's one-step point
    :math:`\rho\,g/\|g\|` (Foret et al. 2021, equation 2), the others are random points of the sphere. What is
    returned is a **lower bound** of the maximum.

    Args:
        risk: The mean loss over the data.
        rho: Radius, in the units of the weights, at least 0.
        steps: Ascent steps from each start; each costs one forward-backward pass.
        restarts: Number of starts, the first included.
        subspace: Directions allowed: an orthonormal basis (n, k) or an object with ``project``. Default: all.
        start: One more start (n,), scaled to the sphere: the maximiser at a smaller radius, say.
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
    starts = [ascent.centre_gradient]
    if start is not None:
        starts.append(start)
    for _ in range(restarts - 1):
        noise = torch.randn(risk.num_params, dtype=torch.float64, generator=generator)
        starts.append(noise.to(risk.device, risk.dtype))
    if rho == 0:
        starts = starts[:1]
    runs = [ascent.climb(direction, steps if rho > 0 else 1) for direction in starts]
    best_loss, best_epsilon = max(runs, key=lambda run: run[0])
    if best_loss <= ascent.centre_loss:
        best_loss, best_epsilon = ascent.centre_loss, torch.zeros_like(ascent.theta)
    return SharpnessResult(
        rho=rho,
        loss=ascent.centre_loss,
        worst_loss=best_loss,
        epsilon=best_epsilon,
        one_step_loss=ascent.one_step_loss,
        start_losses=tuple(loss for loss, _ in runs),
        num_passes=ascent.num_passes,
    )


class _Ascent:
    """Projected ascent in one ball; counts its passes."""

    def __init__(self, risk: EmpiricalRisk, rho: float, space: Subspace | None) -> None:
        self.risk, self.rho, self.space = risk, rho, space
        self.theta = risk.theta
        self.num_passes = 0
        self.one_step_loss = math.nan
        self.centre_loss, self.centre_gradient = self._evaluate(torch.zeros_like(self.theta))
        if not math.isfinite(self.centre_loss):
            raise FloatingPointError(f"the loss at the centre of the ball is {self.centre_loss}: nothing to compare")

    def climb(self, direction: Tensor, steps: int) -> tuple[float, Tensor]:
        """Largest loss met and its epsilon, from the point of the sphere in ``direction``."""
        epsilon = self._into_ball(self._on_sphere(direction))
        loss, gradient = self._evaluate(epsilon)
        if math.isnan(self.one_step_loss):
            self.one_step_loss = loss
        best, step_size = (loss, epsilon), 2 * self.rho
        for _ in range(steps - 1):
            if not math.isfinite(loss):
                break  # an infinite loss cannot be exceeded; the caller sees it
            candidate = self._into_ball(best[1] + step_size * _unit(gradient))
            loss, new_gradient = self._evaluate(candidate)
            if loss > best[0]:
                best, gradient = (loss, candidate), new_gradient
            else:
                step_size, loss = step_size / 2, best[0]
        return best

    def _evaluate(self, epsilon: Tensor) -> tuple[float, Tensor]:
        self.num_passes += 1
        loss, gradient = self.risk.loss_and_gradient(self.theta + epsilon)
        return (math.inf if math.isnan(loss) else loss), self._project(gradient)

    def _project(self, vector: Tensor) -> Tensor:
        return vector if self.space is None else self.space.project(vector)

    def _on_sphere(self, direction: Tensor) -> Tensor:
        return self.rho * _unit(self._project(direction))

    def _into_ball(self, epsilon: Tensor) -> Tensor:
        norm = float(epsilon.double().norm())
        return epsilon if norm <= self.rho else epsilon * (self.rho / norm)


def _unit(vector: Tensor) -> Tensor:
    norm = vector.double().norm()
    return vector if norm == 0 else (vector.double() / norm).to(vector.dtype)
