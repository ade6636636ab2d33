"""Paired comparisons: intervals, one-sided p-values, ratios of means, and two opinions that need no normality."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
_ROUNDING = 1e-12
_EXACT = 14


@dataclass(frozen=True)
class Comparison:
    """Mean of paired differences with its 95 % (or other) interval.

    Attributes:
        effect: Mean of the differences.
        low: Lower end of the two-sided Student-t interval.
        high: Upper end.
        p_above: One-sided p-value of the hypothesis that the mean is at most 0: small when it is above.
        p_below: One-sided p-value of the hypothesis that the mean is at least 0.
        n: Number of pairs.
        error: Standard error of the mean; unknown (NaN) without a spread.
    """

    effect: float
    low: float
    high: float
    p_above: float
    p_below: float
    n: int
    error: float = math.nan

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

    @property
    def spread(self) -> float:
        """Standard deviation of the differences."""
        return self.error * math.sqrt(self.n)


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
        return Comparison(math.nan, math.nan, math.nan, 0.5, 0.5, 0)
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    # A spread of rounding alone would be infinite evidence.
    if error <= _ROUNDING * float(np.max(np.abs(differences))):
        return Comparison(mean, -math.inf, math.inf, 0.5, 0.5, n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    above, below = float(stats.t.sf(mean / error, n - 1)), float(stats.t.cdf(mean / error, n - 1))
    return Comparison(mean, mean - half, mean + half, above, below, n, error)


def signed_ranks(differences: Array) -> Comparison:
    """Wilcoxon's signed ranks where some differences are infinite, as those of runs that diverged.

    An infinite difference has the highest rank. The p-value is exact, over all changes of signs (20,000 random ones
    beyond 14 differences); the effect is the median, which has no interval here.

    >>> signed_ranks(np.array([np.inf, 0.5, 0.4, 0.3, 0.2])).p_above
    0.03125
    """
    kept = differences[~np.isnan(differences)]
    nonzero = kept[kept != 0]
    if not len(nonzero):
        return Comparison(0.0 if len(kept) else math.nan, -math.inf, math.inf, 0.5, 0.5, len(kept))
    ranks = stats.rankdata(np.abs(nonzero)) * np.sign(nonzero)
    with np.errstate(invalid="ignore"):  # the median of opposite infinities
        middle = float(np.median(kept))
    above, below = (sign_flip(signed, alternative="greater") for signed in (ranks, -ranks))
    return Comparison(middle, -math.inf, math.inf, above, below, len(kept))


def sign_flip(differences: Array, *, alternative: Literal["two-sided", "greater"] = "two-sided") -> float:
    """P-value of a mean of 0 under random signs: exact up to 14 differences, else from 20,000 draws with seed 0.

    >>> sign_flip(np.array([1.0, 1.1, 0.9, 1.2, 0.8]))
    0.0625
    """
    if len(differences) < 2:
        return 1.0
    draws = np.inf if len(differences) <= _EXACT else 20_000
    result = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=draws,
        alternative=alternative,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def bootstrap_interval(differences: Array, *, level: float = 0.95) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron 1987), 9,999 resamples with seed 0.

    Unbounded for fewer than three differences or without a spread.
    """
    if len(differences) < 3 or not np.ptp(differences) > _ROUNDING * np.max(np.abs(differences)):
        return -math.inf, math.inf
    found = stats.bootstrap(
        (differences,), np.mean, confidence_level=level, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


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
