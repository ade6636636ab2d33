"""Studies drawn at random with a known truth, judged by the rules that judge real ones."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyses.judging.families import Adjusted
from analyses.judging.sequential import repeated_p_value
from analyses.judging.statistics import Comparison, paired
from analyses.judging.verdict import Verdict, decide

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """Two methods' worst-case rises over seeds: log-normal, or skewed on the log scale too.

    Attributes:
        ratio: True ratio of geometric means, subject over reference.
        spreads: Standard deviations of the two logarithms.
        skews: Skewness of the two logarithms; 0 for log-normal rises, else of a gamma distribution.
    """

    ratio: float
    spreads: tuple[float, float]
    skews: tuple[float, float] = (0.0, 0.0)

    def log_ratios(self, generator: np.random.Generator, n: int) -> Array:
        """(n,) log ratios of n seeds."""
        logs = [spread * _standard(generator, skew, n) for spread, skew in zip(self.spreads, self.skews, strict=True)]
        ratios: Array = math.log(self.ratio) + logs[0] - logs[1]
        return ratios


@dataclass(frozen=True)
class Rates:
    """Shares of simulated studies.

    Attributes:
        supported: The subject's rise was called lower.
        contradicted: It was called higher.
        equivalent: It was called equal within the margin.
        coverage: The 95 % interval of the last look held the true ratio.
        seeds: Mean number of seeds at the end.
    """

    supported: float
    contradicted: float
    equivalent: float
    coverage: float
    seeds: float


def simulate(truth: Truth, looks: list[int], *, studies: int, alpha: float, margin: float, seed: int = 0) -> Rates:
    """Judge the claim "the subject's rise is below the reference's" in studies drawn at random.

    Args:
        truth: What is true.
        looks: Seeds at the looks; a single one is a study of fixed size, several are group-sequential.
        studies: Number of studies.
        alpha: Level.
        margin: Factor within which rises count as equal.
        seed: Of the draws.
    """
    generator, verdicts, covered, ended = np.random.default_rng(seed), Counter[str](), 0, 0
    fractions = [look / looks[-1] for look in looks]
    for _ in range(studies):
        logs, history = truth.log_ratios(generator, looks[-1]), []
        verdict: Verdict = "undecided"
        for number, look in enumerate(looks, 1):
            found = paired(logs[:look])
            history.append((found.p_below, found.p_above, found.p_outside(math.log(margin))))
            p_for, p_against, p_equivalent = (
                repeated_p_value(list(one), fractions[:number]) for one in zip(*history, strict=True)
            )
            verdict = decide(p_for, p_against, p_equivalent, Adjusted(p_value=1.0, level=alpha))
            if verdict != "undecided":
                break
        verdicts[verdict] += 1
        covered += _holds(found, math.log(truth.ratio))
        ended += found.n
    shares = {name: verdicts[name] / studies for name in ("supported", "contradicted", "equivalent")}
    return Rates(**shares, coverage=covered / studies, seeds=ended / studies)


def _holds(found: Comparison, value: float) -> bool:
    return found.low <= value <= found.high


def _standard(generator: np.random.Generator, skew: float, n: int) -> Array:
    """Draws (n,) of mean 0 and variance 1."""
    if skew == 0:
        return generator.normal(size=n)
    shape = 4 / skew**2
    drawn: Array = (generator.gamma(shape, size=n) - shape) / math.sqrt(shape)
    return drawn
