"""From comparisons to verdicts: hypotheses of one or more parts, judged together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from statsmodels.stats.multitest import multipletests

from analyses.judging.statistics import Comparison

Verdict = Literal["supported", "contradicted", "equivalent", "undecided"]


@dataclass(frozen=True)
class Part:
    """One comparison of a claim.

    Attributes:
        name: What is compared.
        effect: Estimate, in ``unit``.
        low: Lower end of its 95 % interval.
        high: Upper end.
        unit: Unit of effect and interval.
        n: Number of pairs.
        p_value: Two-sided p-value of this comparison alone.
        reading: The comparison in words.
        p_equivalent: P-value of two one-sided tests against the margin; 1 where the claim has none.
        smallest_effect: Smallest effect that these pairs find with 80 % power, in ``unit``; None where it is not
            worked out or the pairs have no spread.
    """

    name: str
    effect: float
    low: float
    high: float
    unit: str
    n: int
    p_value: float
    reading: str
    p_equivalent: float = 1.0
    smallest_effect: float | None = None


@dataclass(frozen=True)
class Claim:
    """A claim with its parts; it holds if all of them do."""

    number: int
    statement: str
    verdict: Verdict
    p_value: float
    p_adjusted: float
    test: str
    parts: list[Part]


@dataclass(frozen=True)
class Evidence:
    """A part together with its one-sided p-values for and against the claim."""

    part: Part
    p_for: float
    p_against: float


Draft = tuple[int, str, list[Evidence]]
"""A hypothesis before it is judged: number, statement and the evidence of its parts."""


def verdicts(drafts: Sequence[Draft], *, alpha: float, family: str) -> list[Claim]:
    """Judge a family of hypotheses.

    One of several parts is supported only if every part is (an intersection-union test: the largest of the one-sided
    p-values), and contradicted if any part is (the smallest, times the number of parts). Twice the smaller of the two
    is its p-value; Holm's step-down procedure adjusts it for the size of the family, and what is then below ``alpha``
    decides. The intervals are per comparison and not adjusted.

    A claim is equivalent if all its parts lie within their margins (the largest p-value of their two one-sided tests).
    The smaller of its two p-values is adjusted, and equivalence, where it is shown, goes before a direction: a
    difference within the margin is none that matters.

    Args:
        drafts: The hypotheses.
        alpha: Level.
        family: What they are called, for the description of the test.

    Returns:
        One entry a draft, in the same order.
    """
    if not drafts:
        return []
    raw = [_p_values(evidence) for _, _, evidence in drafts]
    smallest = [min(directed, equivalent) for directed, equivalent, _ in raw]
    adjusted = multipletests(smallest, alpha=alpha, method="holm")[1]
    test = f"paired Student t over seeds, Holm over {len(drafts)} {family}"
    judged = []
    for (number, statement, evidence), tested, p, p_adjusted in zip(drafts, raw, smallest, adjusted, strict=True):
        directed, equivalent, direction = tested
        # Holm multiplied this claim's smaller p-value; the other one is held to the same level.
        level = alpha * p / p_adjusted if p_adjusted > 0 else alpha / len(drafts)
        verdict: Verdict = "equivalent" if equivalent < level else direction if directed < level else "undecided"
        parts = [item.part for item in evidence]
        judged.append(Claim(number, statement, verdict, p, float(p_adjusted), test, parts))
    return judged


def lower_is_better(result: Comparison, name: str, unit: str, reading: str) -> Evidence:
    """Evidence for a hypothesis that says the effect is negative."""
    return _evidence(result, name, unit, reading, result.p_below, result.p_above)


def higher_is_better(result: Comparison, name: str, unit: str, reading: str) -> Evidence:
    """Evidence for a hypothesis that says the effect is positive."""
    return _evidence(result, name, unit, reading, result.p_above, result.p_below)


def _evidence(result: Comparison, name: str, unit: str, reading: str, p_for: float, p_against: float) -> Evidence:
    p_value = both(p_for, p_against)
    return Evidence(
        Part(name, result.effect, result.low, result.high, unit, result.n, p_value, reading), p_for, p_against
    )


def _p_values(evidence: list[Evidence]) -> tuple[float, float, Verdict]:
    """P-values of a direction and of equivalence, and the direction."""
    supports = max(item.p_for for item in evidence)
    contradicts = min(1.0, len(evidence) * min(item.p_against for item in evidence))
    equivalent = max(item.part.p_equivalent for item in evidence)
    return both(supports, contradicts), equivalent, "supported" if supports < contradicts else "contradicted"


def both(p_for: float, p_against: float) -> float:
    """Two-sided p-value from the one-sided ones."""
    return min(1.0, 2 * min(p_for, p_against))
