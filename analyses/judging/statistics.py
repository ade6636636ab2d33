"""Paired comparisons: intervals, one-sided p-values and ratios of means."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.power import TTestPower

Array = NDArray[np.float64]
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Comparison:
    """Mean of paired differences with its 95 % (or other) interval.

    Attributes:
        effect: Mean of the differences.
        low: Lower end of the two-sided Student-t interval.
        high: Upper end.
        p_above: One-sided p-value of the hypothesis that the mean is at most 0: small when it is above.
        n: Number of pairs.
        error: Standard error of the mean; unknown (NaN) without a spread.
    """

    effect: float
    low: float
    high: float
    p_above: float
    n: int
    error: float = math.nan

    @property
    def p_below(self) -> float:
        """One-sided p-value of the hypothesis that the mean is at least 0."""
        return 1.0 - self.p_above

    def p_outside(self, margin: float) -> float:
        """P-value of two one-sided t-tests of a mean outside ±margin (Schuirmann 1987): small when it lies inside.

        It is 1 where the differences leave no standard error.

        >>> paired(np.array([0.01, -0.02, 0.015, 0.0])).p_outside(0.2) < 0.001
        True
        """
        if not self.error > 0:
            return 1.0
        above, below = (self.effect + margin) / self.error, (self.effect - margin) / self.error
        return float(max(stats.t.sf(above, self.n - 1), stats.t.cdf(below, self.n - 1)))

    def smallest_effect(self, alpha: float, *, power: float = 0.8) -> float | None:
        """Mean that a two-sided t-test at ``alpha`` on as many pairs with this spread finds with the power asked for.

        None without a spread or with fewer than two pairs.
        """
        if not self.error > 0:
            return None
        size = TTestPower().solve_power(nobs=self.n, alpha=alpha, power=power)
        return float(np.max(size)) * self.error * math.sqrt(self.n)


def paired(differences: Array, *, level: float = 0.95) -> Comparison:
    """Student's t for the mean of paired differences (m,).

    Fewer than two pairs, or differences that are all alike, leave the statistic undefined: the interval is then
    unbounded and p = 0.5 either way, no evidence.

    >>> result = paired(np.array([1.0, 2.0, 3.0]))
    >>> round(result.effect, 3), round(result.low, 3), round(result.high, 3)
    (2.0, -0.484, 4.484)
    """
    n = len(differences)
    if n == 0:
        return Comparison(math.nan, math.nan, math.nan, 0.5, 0)
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    # A spread of rounding alone would be infinite evidence.
    if error <= _ROUNDING * float(np.max(np.abs(differences))):
        return Comparison(mean, -math.inf, math.inf, 0.5, n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return Comparison(mean, mean - half, mean + half, float(stats.t.sf(mean / error, n - 1)), n, error)


def fieller(numerators: Array, denominators: Array, *, level: float = 0.95) -> tuple[float, float, float]:
    """Ratio of two paired means with Fieller's interval (Fieller 1954, J. R. Stat. Soc. B 16).

    The interval holds every share s at which the mean of ``numerators - s * denominators`` does not differ from 0.
    It is unbounded (-inf, inf) when the denominator's mean itself does not differ from 0.

    Args:
        numerators: (m,) paired values.
        denominators: (m,) paired values.
        level: Confidence level.

    Returns:
        Ratio, lower and upper end.

    >>> ratio, low, high = fieller(np.array([1.0, 1.1, 0.9]), np.array([2.0, 2.1, 1.9]))
    >>> round(ratio, 3), low < ratio < high
    (0.5, True)
    """
    n = len(numerators)
    if n == 0:
        return math.nan, math.nan, math.nan
    x, y = float(np.mean(numerators)), float(np.mean(denominators))
    ratio = x / y if y else math.nan
    if n == 1:
        return ratio, -math.inf, math.inf
    (xx, xy), (_, yy) = (np.cov(numerators, denominators, ddof=1) / n).tolist()
    t2 = float(stats.t.ppf((1 + level) / 2, n - 1)) ** 2
    a, b, c = y * y - t2 * yy, x * y - t2 * xy, x * x - t2 * xx
    if a <= 0:
        return ratio, -math.inf, math.inf
    root = math.sqrt(max(b * b - a * c, 0.0))
    return ratio, (b - root) / a, (b + root) / a
