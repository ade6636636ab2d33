"""How much a paired t-test on so many runs can see, and how many runs it would take."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats
from statsmodels.stats.power import TTestPower

POWER = 0.8
_MOST = 10_000


def smallest_effect(spread: float, n: int, *, alpha: float) -> float | None:
    """Mean difference that a two-sided t-test of n pairs finds with 80 % power; None without a spread.

    Args:
        spread: Standard deviation of the differences.
        n: Number of pairs.
        alpha: Level.
    """
    if n < 2 or not (spread > 0 and math.isfinite(spread)):
        return None
    return float(np.max(TTestPower().solve_power(nobs=n, alpha=alpha, power=POWER))) * spread


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
    directed = stats.nct.sf(two_sided, freedom, beyond * scale) if beyond > 0 else 0.0
    if directed >= POWER or margin is None or abs(effect) >= margin:
        return bool(directed >= POWER)
    above = stats.nct.sf(one_sided, freedom, (margin + effect) * scale)
    below = stats.nct.sf(one_sided, freedom, (margin - effect) * scale)
    return bool(above + below - 1 >= POWER)
