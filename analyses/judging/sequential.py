"""Looks at a study that is still growing: alpha spending, p-values that may be looked at repeatedly, and their cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Array = NDArray[np.float64]
_POINTS = 601
_WIDTH = 8.0
"""Standard deviations below 0 at which the grid ends."""
_ALPHAS = np.geomspace(1e-10, 0.5, 80)


def spent(alpha: float, fraction: float) -> float:
    r"""Share of alpha spent when a fraction of the information is in: :math:`2-2\Phi(z_{\alpha/2}/\sqrt t)`.

    Of Lan & DeMets (1983, Biometrika 70:659) after O'Brien & Fleming: little at first, nearly all at the end.

    >>> round(spent(0.05, 1.0), 6), round(spent(0.05, 0.25), 6)
    (0.05, 8.9e-05)
    """
    return float(2 * stats.norm.sf(stats.norm.isf(alpha / 2) / math.sqrt(fraction)))


def nominal_levels(fractions: Sequence[float], alpha: float) -> list[float]:
    """One-sided levels of the looks at which the probability of a crossing under no effect is what `spent` allows.

    Test statistics of growing data are a Brownian motion at the fractions of the information; its density over the
    region that has not crossed is carried from look to look on a grid (Armitage, McPherson & Rowe 1969).

    Args:
        fractions: Of the most information that is planned for, ascending, the last at most 1.
        alpha: One-sided level over all looks.

    >>> [round(level, 4) for level in nominal_levels([0.5, 1.0], 0.025)]
    [0.0015, 0.0245]
    """
    levels, before, motion = [], 0.0, _Motion(symmetric=False)
    for fraction in fractions:
        increment, before = spent(alpha, fraction) - before, spent(alpha, fraction)
        bound = motion.bound(fraction, increment)
        motion.stop_at(fraction, bound)
        levels.append(float(stats.norm.sf(bound)))
    return levels


def repeated_p_value(p_values: Sequence[float], fractions: Sequence[float]) -> float:
    """Smallest overall level at which one of the looks so far has crossed; a one-sided p-value that allows for looks.

    Args:
        p_values: One-sided, nominal, of the looks so far.
        fractions: Their information, see `nominal_levels`; the levels of later looks do not matter.

    >>> repeated_p_value([0.03], [1.0]) == 0.03
    True
    """
    grid = _levels_by_alpha(tuple(fractions))
    found = 1.0
    for p, levels in zip(p_values, grid.T, strict=True):
        if p <= levels[-1]:
            logs = np.log(np.maximum(levels, 1e-300))
            found = min(found, math.exp(float(np.interp(math.log(max(p, 1e-300)), logs, np.log(_ALPHAS)))))
    # Without looks before it a p-value is itself.
    return float(p_values[0]) if len(p_values) == 1 and fractions[0] == 1.0 else found


def inflated_rate(fractions: Sequence[float], level: float) -> float:
    """Probability under no effect that a two-sided p-value falls below ``level`` at one of the looks.

    >>> round(inflated_rate([5 / 8, 1.0], 0.05), 3)
    0.079
    """
    motion, bound = _Motion(symmetric=True), float(stats.norm.isf(level / 2))
    return sum(motion.stop_at(fraction, bound) for fraction in fractions)


class _Motion:
    """Density of a Brownian motion that has not crossed, on a grid; ``symmetric`` stops it below too."""

    def __init__(self, *, symmetric: bool) -> None:
        self._symmetric, self._time = symmetric, 0.0
        self._points: Array = np.zeros(1)
        self._masses: Array = np.ones(1)

    def bound(self, fraction: float, crossing: float) -> float:
        """Bound in standard deviations that is crossed upwards at this look with the probability asked for."""
        if crossing <= 0:
            return math.inf
        return float(optimize.brentq(lambda z: self._above(fraction, z) - crossing, -_WIDTH, 40.0, xtol=1e-10))

    def stop_at(self, fraction: float, bound: float) -> float:
        """Move to a look and take out what has crossed; its probability."""
        crossed = self._above(fraction, bound) * (2 if self._symmetric else 1)
        root = math.sqrt(fraction)
        top = min(bound, _WIDTH) * root
        points = np.linspace(-top if self._symmetric else -_WIDTH * root, top, _POINTS)
        step = math.sqrt(fraction - self._time)
        density = stats.norm.pdf((points[:, None] - self._points[None, :]) / step) / step @ self._masses
        weights = np.full(_POINTS, points[1] - points[0])
        weights[[0, -1]] /= 2
        self._points, self._masses, self._time = points, density * weights, fraction
        return crossed

    def _above(self, fraction: float, bound: float) -> float:
        step = math.sqrt(fraction - self._time)
        return float(self._masses @ stats.norm.sf((bound * math.sqrt(fraction) - self._points) / step))


@lru_cache(maxsize=64)
def _levels_by_alpha(fractions: tuple[float, ...]) -> Array:
    """Nominal levels (alphas, looks) on a grid of overall levels."""
    return np.array([nominal_levels(fractions, float(alpha)) for alpha in _ALPHAS])
