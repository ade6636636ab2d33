"""The paper's statements as hypotheses, judged from the records."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests

from analyses.statistics import Comparison, fieller, paired
from analyses.study import ClaimSettings

Verdict = Literal["supported", "contradicted", "undecided"]
Array = NDArray[np.float64]
BILORA, LORA = "bilora", "lora"


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
    """

    name: str
    effect: float
    low: float
    high: float
    unit: str
    n: int
    p_value: float
    reading: str


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
class _Evidence:
    """A part together with its one-sided p-values for and against the claim."""

    part: Part
    p_for: float
    p_against: float


def judge(records: pd.DataFrame, settings: ClaimSettings) -> list[Claim]:
    """Judge every claim.

    A claim of several parts is supported only if every part is (an intersection-union test: the largest of the
    one-sided p-values), and contradicted if any part is (the smallest, times the number of parts). Twice the smaller
    of the two is the claim's p-value; Holm's step-down procedure adjusts it for the number of claims, and what is
    then below ``settings.alpha`` decides. The intervals are per comparison and not adjusted.

    Args:
        records: Records of the study.
        settings: Radius, level and thresholds.

    Returns:
        One entry a claim, in the order of their numbers.
    """
    table = _Values(records, settings.rho)
    drafts = [(number, statement, make(table, settings)) for number, statement, make in _claims(settings)]
    raw = [_two_sided(evidence) for _, _, evidence in drafts]
    adjusted = multipletests([p for p, _ in raw], alpha=settings.alpha, method="holm")[1]
    claims = []
    for (number, statement, evidence), (p, direction), p_adjusted in zip(drafts, raw, adjusted, strict=True):
        verdict: Verdict = direction if p_adjusted < settings.alpha else "undecided"
        test = f"paired Student t over seeds, Holm over {len(drafts)} claims"
        claims.append(Claim(number, statement, verdict, p, float(p_adjusted), test, [item.part for item in evidence]))
    return claims


def claims_document(records: pd.DataFrame, settings: ClaimSettings) -> dict[str, object]:
    """The judged claims as plain data, with the settings that decided."""
    claims = [asdict(claim) for claim in judge(records, settings)]
    return {"rho": settings.rho, "alpha": settings.alpha, "claims": claims}


def _claims(
    settings: ClaimSettings,
) -> list[tuple[int, str, Callable[[_Values, ClaimSettings], list[_Evidence]]]]:
    rho, share = f"{settings.rho:g}", f"{settings.recovered_share:.0%}"
    return [
        (1, f"Bi-LoRA's worst-case loss rise in the full space (rho = {rho}) is below LoRA's", _below(LORA)),
        (
            2,
            f"Bi-LoRA's worst-case loss rise in the full space (rho = {rho}) is below LoRA-SAM's",
            _below("lora_sam"),
        ),
        (3, f"Bi-LoRA recovers at least {share} of full SAM's reduction of the worst-case rise", _recovered),
        (4, "Bi-LoRA's test accuracy is above LoRA's", _accuracy),
        (
            5,
            f"A Bi-LoRA step takes at most {settings.step_ratio:g} times a LoRA step and less than a LoRA-SAM step",
            _step_time,
        ),
        (6, "The auxiliary captures more of the dominant curvature than a random subspace", _captured),
        (7, "Bi-LoRA's reduction exceeds that of every control", _below("dual_lora", "random_aux", "lora_2r")),
    ]


class _Values:
    """Values by method, paired over seeds and training-set sizes."""

    def __init__(self, records: pd.DataFrame, rho: float) -> None:
        self._records, self._rho = records, rho

    def series(self, method: str, measure: str) -> pd.Series:
        """Values of one method indexed by (train size, seed)."""
        chosen = self._records[(self._records["method"] == method) & (self._records["measure"] == measure)]
        if measure == "worst_case_rise":
            chosen = chosen[(chosen["subspace"] == "full") & np.isclose(chosen["rho"], self._rho)]
        if measure.startswith("captured_energy"):
            chosen = chosen[chosen["layer"] == "all"]
        return chosen.groupby(["train_size", "seed"])["value"].mean()

    def pairs(self, *wanted: tuple[str, str]) -> list[Array]:
        """Values of several (method, measure) at the seeds that all of them have and where they are finite."""
        joined = pd.concat([self.series(*one) for one in wanted], axis=1, join="inner")
        joined = joined.replace([np.inf, -np.inf], np.nan).dropna()
        return [joined.iloc[:, i].to_numpy(dtype=float) for i in range(len(wanted))]


def _below(*others: str) -> Callable[[_Values, ClaimSettings], list[_Evidence]]:
    def evidence(values: _Values, settings: ClaimSettings) -> list[_Evidence]:
        found = []
        for other in others:
            ours, theirs = values.pairs((BILORA, "worst_case_rise"), (other, "worst_case_rise"))
            relative = _percent(ours.mean() / theirs.mean() - 1) if len(ours) and theirs.mean() else "–"
            reading = f"worst-case rise of bilora minus {other}'s: {relative} of {other}'s"
            found.append(_lower_is_better(paired(ours - theirs), f"bilora − {other}", "nats", reading))
        return found

    return evidence


def _recovered(values: _Values, settings: ClaimSettings) -> list[_Evidence]:
    found = []
    for reference in ("lora_sam_full", "sam"):
        rise = "worst_case_rise"
        lora, bilora, ideal = values.pairs((LORA, rise), (BILORA, rise), (reference, rise))
        ratio, low, high = fieller(lora - bilora, lora - ideal)
        contrast = paired((lora - bilora) - settings.recovered_share * (lora - ideal))
        reduction = paired(lora - ideal)
        reading = (
            f"share of {reference}'s reduction over lora that bilora recovers (Fieller interval); "
            f"{reference} itself reduces the rise by {reduction.effect:.3g} nats"
        )
        # Without a reduction by the reference there is no share to recover: the claim then cannot be supported.
        p_for = max(contrast.p_above, reduction.p_above)
        p_against = max(contrast.p_below, reduction.p_above)
        part = Part(f"share of {reference}", ratio, low, high, "share", contrast.n, _both(p_for, p_against), reading)
        found.append(_Evidence(part, p_for, p_against))
    return found


def _accuracy(values: _Values, settings: ClaimSettings) -> list[_Evidence]:
    ours, theirs = values.pairs((BILORA, "test_accuracy"), (LORA, "test_accuracy"))
    result = paired(100 * (ours - theirs))
    reading = "test accuracy of bilora minus lora's, in percentage points"
    return [_higher_is_better(result, "bilora − lora", "points", reading)]


def _step_time(values: _Values, settings: ClaimSettings) -> list[_Evidence]:
    found = []
    for other, limit in ((LORA, settings.step_ratio), ("lora_sam", 1.0)):
        ours, theirs = values.pairs((BILORA, "step_seconds"), (other, "step_seconds"))
        logs = paired(np.log(ours / theirs))
        against = paired(np.log(ours / theirs) - math.log(limit))
        effect, low, high = (_exp(value) for value in (logs.effect, logs.low, logs.high))
        reading = f"step time of bilora over {other}'s (limit {limit:g}); pairs are interleaved rounds in one process"
        p_value = _both(against.p_below, against.p_above)
        part = Part(f"bilora / {other}", effect, low, high, "ratio", logs.n, p_value, reading)
        found.append(_Evidence(part, against.p_below, against.p_above))
    return found


def _captured(values: _Values, settings: ClaimSettings) -> list[_Evidence]:
    measures = ("captured_energy", "captured_energy_null", "captured_energy_optimum")
    ours, null, best = values.pairs(*((BILORA, measure) for measure in measures))
    reading = "share of the dominant eigenvectors in the auxiliary's column space, minus the random expectation"
    if len(ours):
        reading += f" of {_percent(null.mean())}; a space of that rank can hold at most {_percent(best.mean())}"
    return [_higher_is_better(paired(ours - null), "auxiliary − random", "share", reading)]


def _lower_is_better(result: Comparison, name: str, unit: str, reading: str) -> _Evidence:
    return _evidence(result, name, unit, reading, result.p_below, result.p_above)


def _higher_is_better(result: Comparison, name: str, unit: str, reading: str) -> _Evidence:
    return _evidence(result, name, unit, reading, result.p_above, result.p_below)


def _evidence(result: Comparison, name: str, unit: str, reading: str, p_for: float, p_against: float) -> _Evidence:
    p_value = _both(p_for, p_against)
    return _Evidence(
        Part(name, result.effect, result.low, result.high, unit, result.n, p_value, reading), p_for, p_against
    )


def _two_sided(evidence: list[_Evidence]) -> tuple[float, Literal["supported", "contradicted"]]:
    supports = max(item.p_for for item in evidence)
    contradicts = min(1.0, len(evidence) * min(item.p_against for item in evidence))
    return _both(supports, contradicts), "supported" if supports < contradicts else "contradicted"


def _both(p_for: float, p_against: float) -> float:
    return min(1.0, 2 * min(p_for, p_against))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0)) if math.isfinite(value) else (0.0 if value == -math.inf else value)
