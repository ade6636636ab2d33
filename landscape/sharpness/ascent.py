"""Ascent of the loss inside a ball, one step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from landscape.risk import EmpiricalRisk
from landscape.sharpness.balls import Ball

FIRST_STEP = 4.0
"""First step over the radius. Steps longer than the ball is wide cross the plateaus at which shorter ones stop."""

_SMALLEST_STEP = 1e-3
"""Step over the radius at which there is nothing left to gain."""


@dataclass(frozen=True)
class Point:
    """A perturbation with the loss and its gradient there."""

    epsilon: Tensor
    loss: float
    gradient: Tensor


Visit = Callable[[Tensor], Point]
"""From a perturbation to the point there."""


class PassCounter:
    """Forward-backward passes over the data; a pass over a part of them counts as its share, a forward as a third."""

    def __init__(self) -> None:
        self.num_passes = 0.0

    def visits(self, risk: EmpiricalRisk, theta: Tensor, *, share: float = 1.0) -> Visit:
        """A function that visits points around ``theta`` and counts ``share`` passes each time."""

        def visit(epsilon: Tensor) -> Point:
            self.num_passes += share
            loss, gradient = risk.loss_and_gradient(theta + epsilon)
            return Point(epsilon, math.inf if math.isnan(loss) else loss, gradient)

        return visit


class Climb:
    r"""Projected-gradient ascent in a ball that never falls, and that can be taken up again.

    A step goes from the best point by ``step`` times the radius along the steepest direction of the ball's norm and is
    projected onto the ball; one that does not rise is taken back and halves the next. With long steps on the boundary
    of an l2 ball this is the power iteration :math:`\epsilon\leftarrow\rho\,m/\|m\|`,
    :math:`m=\epsilon/\rho+c\,g/\|g\|`, with the shift 1/c; halving makes it converge inside the ball, too (Croce and
    Hein 2020, arXiv 2003.01690, halve at fixed checkpoints instead).

    Attributes:
        best: The highest point met.
    """

    def __init__(self, visit: Visit, ball: Ball, start: Point) -> None:
        self.best, self._visit, self._ball = start, visit, ball
        self._step = FIRST_STEP
        self._ended = False

    def advance(self, steps: int, *, floor: float, tol: float) -> Point:
        r"""Take at most ``steps`` more steps.

        The climb ends for good when the linearised gain that is left,
        :math:`\max_{\|e\|\le\rho}\langle g, e-\epsilon\rangle`, is at most ``tol`` times the rise over ``floor`` (at a
        maximum it is 0), when steps have become shorter than a thousandth of the radius, or at an infinite loss.
        """
        for _ in range(steps):
            if self._ended or not math.isfinite(self.best.loss) or self._step < _SMALLEST_STEP:
                break
            uphill = self._ball.ascent_direction(self.best.gradient)
            candidate = self._visit(self._ball.project(self.best.epsilon + self._step * self._ball.rho * uphill))
            if candidate.loss > self.best.loss:
                self.best = candidate
                self._ended = first_order_gain(candidate, self._ball) <= tol * (candidate.loss - floor)
            else:
                self._step /= 2
        return self.best


def first_order_gain(point: Point, ball: Ball) -> float:
    """The most that the linearised loss can still gain in the ball; 0 at a maximum."""
    gradient = point.gradient.double()
    return float(gradient @ (ball.extreme(point.gradient) - point.epsilon).double())
