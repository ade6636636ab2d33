"""Radii at which a minimum's loss rises by given amounts: where it is worth looking."""

from __future__ import annotations

import itertools
import math

import torch

from analyses.study import StudyError
from landscape import EmpiricalRisk
from landscape.sharpness.ascent import Climb, PassCounter
from landscape.sharpness.balls import ball_around

RISES = (1e-3, 0.1, 1.0)
"""Rises in nats at whose radii to look; claims are judged at the radius of the middle one."""

_SMALLEST_RADIUS, _RADIUS_FACTOR, _MOST_RADII = 1e-3, math.sqrt(10), 12
_CLIMB_STEPS = 6


def radii_of_rises(risk: EmpiricalRisk) -> dict[float, float]:
    """Radii, to two digits, at which one climb from the gradient finds rises of `RISES` of the training loss.

    Radii grow until the largest rise is passed or the rise stays where it is; between two of them the logarithms are
    joined by a line. What the climb finds is a lower bound, so that these radii are upper ones.
    """
    rho = _SMALLEST_RADIUS
    visit = PassCounter().visits(risk)
    centre = visit(torch.zeros_like(risk.theta))
    points: list[tuple[float, float]] = [(rho / _RADIUS_FACTOR, 1e-12)]
    for _ in range(_MOST_RADII):
        ball = ball_around(risk, rho, norm="l2", adaptive="none", relative=False, subspace=None)
        climb = Climb(visit, ball, visit(ball.extreme(centre.gradient)))
        rise = climb.advance(_CLIMB_STEPS, floor=centre.loss, tol=1e-2) - centre.loss
        before = points[-1][1]
        points.append((rho, max(rise, before)))
        if rise > RISES[-1] or RISES[0] < rise < 1.01 * before:
            break
        rho *= _RADIUS_FACTOR
    radii = {}
    for wanted in RISES:
        for (low, below), (high, above) in itertools.pairwise(points):
            if below <= wanted < above:
                share = math.log(wanted / below) / math.log(above / below)
                radii[wanted] = float(f"{low * (high / low) ** share:.2g}")
                break
    if not radii:
        raise StudyError(
            f"--data: the training loss rises by less than {RISES[0]:g} nats within {points[-1][0]:.3g} of the "
            "weights; check the data and the model"
        )
    return radii
