"""How much a paired t-test on so many runs can see, and how many runs it would take."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

POWER = 0.8
_MOST, _QUANTILES = 10_000, 4_000
_FEW, _LARGEST = 30, 1e6


def smallest_effect(spread: float, n: int, *, alpha: float) -> float | None:
    """Mean difference that a two-sided t-test of n pairs finds with 80 % power; None without a spread, or beyond a
    million spreads.

    Args:
        spread: Standard deviation of the differences.
        n: Number of pairs.
        alpha: Level.
    """
    if n < 2 or not (spread > 0 and math.isfinite(spread)):
        return None
    critical, freedom = float(stats.t.isf(alpha / 2, n - 1)), n - 1

    def lacks(log_effect: float) -> float:
        return _beyond(critical, freedom, math.exp(log_effect) * math.sqrt(n)) - POWER

    largest = math.log(_LARGEST)
    return math.exp(brentq(lacks, -largest, largest)) * spread if lacks(largest) > 0 else None


@lru_cache(maxsize=512)
def _scales(freedom: int) -> NDArray[np.float64]:
    """Quantiles of an estimated over the true standard deviation."""
    middles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return np.sqrt(stats.chi2.ppf(middles, freedom) / freedom)


def _beyond(critical: float, freedom: int, shift: float) -> float:
    """Chance that a noncentral t variable exceeds a value; scipy's fails far out and at few degrees of freedom."""
    return float(np.mean(stats.norm.sf(critical * _scales(freedom) - shift)))


def runs_needed(
    effect: float, spread: float, *, alpha: float, margin: float | None = None, equivalent: bool = False
) -> int | None:
    """Pairs with which this very effect and spread would be decided with 80 % power, in a direction or as equivalent.

    An effect estimated from few pairs is itself uncertain: an order of magnitude, no promise. None if more than 10,000
    would be needed, or without a spread.

    Args:
        effect: Mean difference.
        spread: Standard deviation of the differences.
        alpha: Level.
        margin: Differences up to it count as none; None without one.
        equivalent: Whether only a difference beyond the margin counts as one, as where a claim says "equivalent".

    >>> runs_needed(1.0, 1.0, alpha=0.05), runs_needed(0.0, 0.1, alpha=0.05, margin=0.2)
    (10, 4)
    """
    if not (spread > 0 and math.isfinite(spread) and math.isfinite(effect)):
        return None
    sizes = np.unique(np.geomspace(2, _MOST, 400).astype(int))
    for index, n in enumerate(sizes):
        if _decides(effect, spread, int(n), alpha, margin, equivalent):
            first = int(sizes[index - 1]) + 1 if index else 2
            return next(m for m in range(first, int(n) + 1) if _decides(effect, spread, m, alpha, margin, equivalent))
    return None


def _decides(effect: float, spread: float, n: int, alpha: float, margin: float | None, equivalent: bool) -> bool:
    scale, freedom = math.sqrt(n) / spread, n - 1
    two_sided, one_sided = stats.t.ppf(1 - alpha / 2, freedom), stats.t.ppf(1 - alpha, freedom)
    beyond = abs(effect) - (margin or 0.0) if equivalent else abs(effect)
    exceeds = _beyond if freedom < _FEW else stats.nct.sf
    directed = exceeds(two_sided, freedom, beyond * scale) if beyond > 0 else 0.0
    if directed >= POWER or margin is None or abs(effect) >= margin:
        return bool(directed >= POWER)
    above = exceeds(one_sided, freedom, (margin + effect) * scale)
    below = exceeds(one_sided, freedom, (margin - effect) * scale)
    return bool(above + below - 1 >= POWER)
