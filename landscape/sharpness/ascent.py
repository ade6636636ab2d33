"""Ascent of the loss inside a ball, one step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from landscape.risk import EmpiricalRisk
from landscape.sharpness.balls import Ball, inner
from landscape.sharpness.shelf import Kept, Shelf

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

    def visits(self, risk: EmpiricalRisk, *, share: float = 1.0) -> Visit:
        """A function that visits points around the model's weights and counts ``share`` passes each time."""

        def visit(epsilon: Tensor) -> Point:
            self.num_passes += share
            loss, gradient = risk.loss_and_gradient(risk.theta.add_(epsilon))
            return Point(epsilon, math.inf if math.isnan(loss) else loss, gradient)

        return visit


class Climb:
    r"""Projected-gradient ascent in a ball that never falls, and that can be taken up again.

    A step goes from the best point by ``step`` times the radius along the steepest direction of the ball's norm and is
    projected onto the ball; one that does not rise is taken back and halves the next. With long steps on the boundary
    of an l2 ball this is the power iteration :math:`\epsilon\leftarrow\rho\,m/\|m\|`,
    :math:`m=\epsilon/\rho+c\,g/\|g\|`, with the shift 1/c; halving makes it converge inside the ball, too (Croce and
    Hein 2020, arXiv 2003.01690, halve at fixed checkpoints instead).

    Memory: six vectors (n,) and a pass over the data while it advances; two, on the shelf, while it waits.

    Attributes:
        loss: At the highest point met.
        epsilon: Gives that point (n,).
    """

    loss: float
    epsilon: Kept
    _gradient: Kept

    def __init__(self, visit: Visit, ball: Ball, start: Point, shelf: Shelf | None = None) -> None:
        self._visit, self._ball, self._shelf = visit, ball, shelf or Shelf("memory")
        self._step = FIRST_STEP
        self._ended = False
        self._put(start)

    def advance(self, steps: int, *, floor: float, tol: float) -> float:
        r"""Take at most ``steps`` more steps; the loss at the highest point met.

        The climb ends for good when the linearised gain that is left,
        :math:`\max_{\|e\|\le\rho}\langle g, e-\epsilon\rangle`, is at most ``tol`` times the rise over ``floor`` (at a
        maximum it is 0), when steps have become shorter than a thousandth of the radius, or at an infinite loss.
        """
        if self._at_rest or steps < 1:
            return self.loss
        best, moved = Point(self.epsilon(), self.loss, self._gradient()), False
        for _ in range(steps):
            candidate = self._visit(self._ball.stepped(best.epsilon, best.gradient, self._step))
            if candidate.loss > best.loss:
                best, moved, self.loss = candidate, True, candidate.loss
                self._ended = first_order_gain(best, self._ball) <= tol * (best.loss - floor)
            else:
                self._step /= 2
            del candidate  # the next step needs the memory
            if self._at_rest:
                break
        if moved:
            self._put(best)
        return self.loss

    @property
    def _at_rest(self) -> bool:
        return self._ended or not math.isfinite(self.loss) or self._step < _SMALLEST_STEP

    def _put(self, point: Point) -> None:
        self.loss = point.loss
        self.epsilon = self._shelf.put(point.epsilon)
        self._gradient = self._shelf.put(point.gradient)


def first_order_gain(point: Point, ball: Ball) -> float:
    """The most that the linearised loss can still gain in the ball; 0 at a maximum."""
    return inner(point.gradient, ball.extreme(point.gradient).sub_(point.epsilon))
