"""From p-values to one of four words."""

from __future__ import annotations

from typing import Literal

from analyses.judging.families import Adjusted

Verdict = Literal["supported", "contradicted", "equivalent", "undecided"]


def decide(p_for: float, p_against: float, p_equivalent: float, place: Adjusted) -> Verdict:
    """The verdict at the level that a family leaves a claim.

    Equivalence, where it is shown, goes before a direction: a difference within the margin is none that matters.

    Args:
        p_for: One-sided p-value for the claim.
        p_against: One-sided p-value for its contrary.
        p_equivalent: P-value of two one-sided tests against the margin.
        place: Of the claim in its family.

    >>> decide(0.001, 0.999, 0.5, Adjusted(p_value=0.002, level=0.05))
    'supported'
    """
    if p_equivalent <= place.level:
        return "equivalent"
    if min(1.0, 2 * min(p_for, p_against)) <= place.level:
        return "supported" if p_for < p_against else "contradicted"
    return "undecided"
