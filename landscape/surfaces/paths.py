"""Paths between two minima, straight and curved, and the barrier on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from landscape.asking import expect_count, expect_number, expect_risk, expect_vector, seeded
from landscape.risk import EmpiricalRisk
from landscape.showing import Shown
from landscape.surfaces.points import BatchNormMode, losses_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class LossPath(Shown):
    r"""Losses along a path from A to B.

    Attributes:
        positions: t (p,) float64, from 0 at A to 1 at B.
        losses: (p,) float64; inf where the loss overflows or is not a number.
        barrier: :math:`\max_t\,[L(t)-((1-t)L(0)+tL(1))]` over the positions, at least 0: a lower bound of the
            maximum over the whole path.
    """

    table: ClassVar[tuple[str, ...]] = ("positions", "losses")
    curve: ClassVar[tuple[str, str] | None] = ("positions", "losses")

    positions: Tensor
    losses: Tensor
    barrier: float


@dataclass(frozen=True, repr=False)
class BezierPath(Shown):
    """A trained curve between two minima.

    Attributes:
        path: Losses along the curve.
        control: (n,), its middle control point.
        training_losses: (steps,) float64, the loss at the random position of each step.
    """

    path: LossPath
    control: Tensor
    training_losses: Tensor

    def plot(self, ax: Axes | None = None) -> Axes:
        """The losses along the curve."""
        return self.path.plot(ax)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return self.path._columns()


def linear_path(
    risk: EmpiricalRisk,
    theta_a: Tensor,
    theta_b: Tensor,
    *,
    num_points: int = 11,
    batch_norm: BatchNormMode = "frozen",
) -> LossPath:
    r"""Losses along :math:`(1-t)\theta_A+t\theta_B` and the barrier between the ends.

    The barrier is that of Entezari et al. 2022 (arXiv 2110.06296, section 2), above the line through the losses of
    the two ends. Frankle et al. 2020 (arXiv 1912.05671, section 2) subtract the mean of the two instead; at equal
    ends the two agree.

    Args:
        risk: The mean loss over the data.
        theta_a: (n,).
        theta_b: (n,).
        num_points: Evenly spaced positions, both ends included.
        batch_norm: Whether batch statistics are ``frozen`` or ``recomputed`` at every point.

    Returns:
        Losses and barrier.

    Raises:
        ValueError: A shape is wrong, or there are fewer than 3 points.
        FloatingPointError: The loss at an end is not finite.

    >>> model = torch.nn.Linear(1, 2, bias=False)
    >>> risk = EmpiricalRisk(model, [(torch.ones(1, 1), torch.tensor([0]))])
    >>> linear_path(risk, torch.zeros(2), torch.ones(2)).barrier  # log 2 all along
    0.0
    """
    theta_a, theta_b = _checked(risk, theta_a, theta_b, num_points)
    positions = torch.linspace(0, 1, num_points, dtype=torch.float64)
    t = positions.to(theta_a)[:, None]
    return _loss_path(positions, losses_at(risk, (1 - t) * theta_a + t * theta_b, batch_norm=batch_norm))


def bezier_path(
    risk: EmpiricalRisk,
    theta_a: Tensor,
    theta_b: Tensor,
    *,
    steps: int = 200,
    learning_rate: float = 0.01,
    num_points: int = 21,
    batch_norm: BatchNormMode = "frozen",
    seed: int = 0,
) -> BezierPath:
    r"""Quadratic Bézier curve of low loss between two minima (Garipov et al. 2018, arXiv 1802.10026, section 3.2).

    .. math:: \phi_c(t) = (1-t)^2\theta_A + 2t(1-t)\,c + t^2\theta_B

    Its control point c starts in the middle of the chord and descends :math:`E_{t\sim U(0,1)} L(\phi_c(t))` by Adam,
    with one random t a step and the gradient :math:`2t(1-t)\nabla L` over all data (the authors take mini-batches).
    Training keeps batch statistics frozen.

    Args:
        risk: The mean loss over the data.
        theta_a: (n,).
        theta_b: (n,).
        steps: Steps of Adam, each one forward-backward pass.
        learning_rate: Of Adam, in the units of the weights.
        num_points: Evenly spaced positions at which the trained curve is evaluated, both ends included.
        batch_norm: Whether batch statistics are ``frozen`` or ``recomputed`` at those positions.
        seed: Seed of the random positions.

    Returns:
        The curve's losses, its control point and the losses met in training.

    Raises:
        ValueError: A shape is wrong, a count is too small, or the learning rate is not positive.
        FloatingPointError: The loss at an end, or a gradient in training, is not finite.

    >>> model = torch.nn.Linear(1, 2, bias=False)
    >>> risk = EmpiricalRisk(model, [(torch.ones(1, 1), torch.tensor([0]))])
    >>> curve = bezier_path(risk, torch.zeros(2), torch.zeros(2), steps=10)
    >>> curve.path.barrier, bool(curve.path.losses[10] < 0.6931)
    (0.0, True)
    """
    theta_a, theta_b = _checked(risk, theta_a, theta_b, num_points)
    expect_count("steps", steps)
    expect_number("learning_rate", learning_rate)
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ValueError(f"learning_rate: expected a positive rate, got {learning_rate}")
    random_positions = torch.rand(steps, generator=seeded(seed), dtype=torch.float64)
    control = ((theta_a + theta_b) / 2).detach().requires_grad_()
    optimizer = torch.optim.Adam([control], lr=learning_rate)
    training_losses = torch.empty(steps, dtype=torch.float64)
    for step, t in enumerate(random_positions.tolist()):
        training_losses[step], gradient = risk.loss_and_gradient(_bezier(theta_a, control.detach(), theta_b, t))
        if not bool(torch.isfinite(gradient).all()):
            raise FloatingPointError(f"the gradient of step {step} is not finite: lower learning_rate")
        control.grad = 2 * t * (1 - t) * gradient
        optimizer.step()
    positions = torch.linspace(0, 1, num_points, dtype=torch.float64)
    trained = control.detach()
    points = torch.stack([_bezier(theta_a, trained, theta_b, t) for t in positions.tolist()])
    return BezierPath(_loss_path(positions, losses_at(risk, points, batch_norm=batch_norm)), trained, training_losses)


def _bezier(theta_a: Tensor, control: Tensor, theta_b: Tensor, t: float) -> Tensor:
    return (1 - t) ** 2 * theta_a + 2 * t * (1 - t) * control + t**2 * theta_b


def _loss_path(positions: Tensor, losses: Tensor) -> LossPath:
    if not bool(torch.isfinite(losses[[0, -1]]).all()):
        raise FloatingPointError(f"the losses at the ends are {losses[0]:g} and {losses[-1]:g}: nothing to compare")
    chord = (1 - positions) * losses[0] + positions * losses[-1]
    return LossPath(positions, losses, float((losses - chord).max()))


def _checked(risk: EmpiricalRisk, theta_a: Tensor, theta_b: Tensor, num_points: int) -> tuple[Tensor, Tensor]:
    """Both ends in the risk's precision and on its device."""
    expect_risk(risk)
    for name, theta in (("theta_a", theta_a), ("theta_b", theta_b)):
        expect_vector(name, theta, risk.num_params)
    expect_count("num_points", num_points)
    if num_points < 3:
        raise ValueError(f"num_points: expected at least 3, the ends and a point between, got {num_points}")
    return theta_a.to(risk.device, risk.dtype), theta_b.to(risk.device, risk.dtype)
