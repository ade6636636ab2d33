"""Several claims at one level: the fallback procedure in an order given beforehand, and Holm's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Adjusted:
    """A claim's place in its family.

    Attributes:
        p_value: Adjusted p-value: the smallest level of the family at which the claim is decided.
        level: Level at which its own p-values are held.
    """

    p_value: float
    level: float


def fallback(p_values: Sequence[float], weights: Sequence[float], *, alpha: float) -> list[Adjusted]:
    r"""Fallback procedure (Wiens 2003, Pharm. Stat. 2:211; Wiens & Dmitrienko 2005): an order and shares of the level.

    A claim is tested at its share of alpha, and at that of the claims before it as long as all these were decided. The
    first with all the weight is the fixed sequence, which ends at the first undecided claim; with equal shares those
    behind an undecided claim keep a level of their own. The family-wise error is at most alpha.

    Args:
        p_values: In the order of the test.
        weights: Shares of the level, not negative.
        alpha: Level of the family.

    >>> [round(one.p_value, 3) for one in fallback([0.01, 0.04, 0.02], [1, 1, 1], alpha=0.05)]
    [0.03, 0.06, 0.06]
    >>> [one.p_value for one in fallback([0.01, 0.2, 0.001], [1, 0, 0], alpha=0.05)]
    [0.01, 0.2, 0.2]
    """
    total = sum(weights)  # 0 where the claims with a weight are those that could not be judged
    shares = [weight / total if total > 0 else 1 / len(weights) for weight in weights]
    adjusted, carried = [], 0.0
    for i, p in enumerate(p_values):
        level = alpha * shares[i] + carried
        carried = level if p <= level else 0.0
        chains = [
            max(_over(p_values[j], sum(shares[start : j + 1])) for j in range(start, i + 1)) for start in range(i + 1)
        ]
        adjusted.append(Adjusted(min(1.0, *chains), level))
    return adjusted


def holm(p_values: Sequence[float], *, alpha: float) -> list[Adjusted]:
    """Holm's step-down procedure (Holm 1979, Scand. J. Stat. 6:65).

    >>> [round(one.p_value, 3) for one in holm([0.01, 0.04, 0.02], alpha=0.05)]
    [0.03, 0.04, 0.04]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found: dict[int, Adjusted] = {}
    largest, going_on = 0.0, True
    for rank, i in enumerate(order):  # statsmodels' multipletests collects the process's garbage at each call
        left = len(p_values) - rank
        largest = max(largest, min(1.0, left * float(p_values[i])))
        found[i] = Adjusted(largest, alpha / left if going_on else 0.0)
        going_on = going_on and p_values[i] <= found[i].level
    return [found[i] for i in range(len(p_values))]


def _over(p: float, share: float) -> float:
    return p / share if share > 0 else (0.0 if p == 0 else 1.0 if p >= 1 else float("inf"))
