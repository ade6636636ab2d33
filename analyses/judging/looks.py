"""The looks that were taken at a study, and what they do to its p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from analyses.judging.evidence import Evidence
from analyses.judging.sequential import inflated_rate, repeated_p_value

P_VALUES = ("p_for", "p_against", "p_equivalent")


@dataclass(frozen=True)
class Look:
    """One look at the verdicts.

    Attributes:
        seeds: Seeds at that time.
        p_values: Nominal one-sided p-values by claim, each as in `P_VALUES`.
    """

    seeds: int
    p_values: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Looks:
    """All looks at one study, the present one last.

    Attributes:
        looks: In the order in which they were taken.
        max_seeds: Most seeds that were planned for when the looks began; None for a study of a fixed size.
        alpha: Level of the study.
    """

    looks: Sequence[Look]
    max_seeds: int | None
    alpha: float = 0.05

    @property
    def description(self) -> str:
        """How the number of seeds came about, in a sentence."""
        taken = [look.seeds for look in self.looks]
        if self.max_seeds is not None:
            at = ", ".join(str(seeds) for seeds in taken)
            return (
                f"Group-sequential: looks at {at} seeds of at most {self.max_seeds}; p-values are repeated ones under "
                "Lan and DeMets's spending of the level after O'Brien and Fleming."
            )
        if len(taken) < 2:
            return f"The number of seeds was fixed: {taken[0]}." if taken else ""
        rate = inflated_rate([seeds / taken[-1] for seeds in taken], self.alpha)
        return (
            f"The study was extended after a look: {', then '.join(str(seeds) for seeds in taken)} seeds. Its p-values "
            f"are nominal; a verdict at {self.alpha:g} falls at one of these looks by chance with probability "
            f"{rate:.3f} (use --until-decided, which allows for looks)."
        )

    def allowed_for(self, key: str, evidence: Evidence) -> Evidence:
        """Evidence whose p-values allow for the looks, in a study that was planned for them."""
        if self.max_seeds is None:
            return evidence
        seen = [(look.seeds / self.max_seeds, look.p_values[key]) for look in self.looks[:-1] if key in look.p_values]
        fractions = [min(1.0, fraction) for fraction, _ in seen] + [min(1.0, self.looks[-1].seeds / self.max_seeds)]
        changed: dict[str, Any] = {}
        for place, name in enumerate(P_VALUES):
            history = [p_values[place] for _, p_values in seen] + [getattr(evidence, name)]
            changed[name] = repeated_p_value(history, fractions)
        return replace(evidence, **changed)
