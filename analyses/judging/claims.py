"""The paper's statements as hypotheses, judged from the records."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.judging.propositions import judge_propositions
from analyses.judging.statistics import fieller, paired
from analyses.judging.verdicts import Claim, Evidence, Part, both, higher_is_better, verdicts
from analyses.records import is_rise
from analyses.study import ClaimSettings

Array = NDArray[np.float64]
BILORA, LORA = "bilora", "lora"
FULL_SAM = ("lora_sam_full", "sam")
CONTROLS = ("dual_lora", "random_aux", "lora_2r")


def judge(records: pd.DataFrame, settings: ClaimSettings) -> list[Claim]:
    """Judge every claim of which the study has Bi-LoRA and a method to compare it with.

    See `analyses.judging.verdicts.verdicts`.

    Args:
        records: Records of the study.
        settings: Radius, level and thresholds.

    Returns:
        One entry a claim, in the order of their numbers.
    """
    table, present = _Values(records, settings.rho), set(records["method"])
    drafts = [
        (number, statement, make(table, settings))
        for number, statement, make, others in _claims(settings)
        if BILORA in present and not present.isdisjoint(others)
    ]
    return verdicts(drafts, alpha=settings.alpha, family="claims")


def claims_document(records: pd.DataFrame, settings: ClaimSettings) -> dict[str, object]:
    """The judged claims and propositions as plain data, with the settings that decided."""
    judged = judge(records, settings)
    return {
        "rho": settings.rho,
        "alpha": settings.alpha,
        "sentence": answer(records, settings, judged),
        "claims": [asdict(claim) for claim in judged],
        "propositions": [asdict(claim) for claim in judge_propositions(records, alpha=settings.alpha)],
    }


def _claims(
    settings: ClaimSettings,
) -> list[tuple[int, str, Callable[[_Values, ClaimSettings], list[Evidence]], tuple[str, ...]]]:
    """Number, statement, evidence, and the methods that Bi-LoRA is compared with."""
    rho, share = f"{settings.rho:g}", f"{settings.recovered_share:.0%}"
    below = f"Bi-LoRA's worst-case loss rise in the full space (rho = {rho}) is below"
    recovers = f"Bi-LoRA recovers at least {share} of full SAM's reduction of the worst-case rise"
    step = f"A Bi-LoRA step takes at most {settings.step_ratio:g} times a LoRA step and less than a LoRA-SAM step"
    captures = "The auxiliary captures more of the dominant curvature than a random subspace"
    return [
        (1, f"{below} LoRA's", _below(LORA), (LORA,)),
        (2, f"{below} LoRA-SAM's", _below("lora_sam"), ("lora_sam",)),
        (3, recovers, _recovered, FULL_SAM),
        (4, "Bi-LoRA's test accuracy is above LoRA's", _accuracy, (LORA,)),
        (5, step, _step_time, (LORA, "lora_sam")),
        (6, captures, _captured, (BILORA,)),
        (7, "Bi-LoRA's reduction exceeds that of every control", _below(*CONTROLS), CONTROLS),
    ]


class _Values:
    """Values by method, paired over seeds and training-set sizes."""

    def __init__(self, records: pd.DataFrame, rho: float) -> None:
        self._records, self._rho = records, rho

    def series(self, method: str, measure: str) -> pd.Series:
        """Values of one method indexed by (train size, seed)."""
        chosen = self._records[(self._records["method"] == method) & (self._records["measure"] == measure)]
        if measure == "worst_case_rise":
            chosen = chosen[is_rise(chosen, "full", self._rho)]
        if measure.startswith("captured_energy"):
            chosen = chosen[chosen["layer"] == "all"]
        return chosen.groupby(["train_size", "seed"])["value"].mean()

    def pairs(self, *wanted: tuple[str, str]) -> list[Array]:
        """Values of several (method, measure) at the seeds that all of them have and where they are finite."""
        joined = pd.concat([self.series(*one) for one in wanted], axis=1, join="inner")
        joined = joined.replace([np.inf, -np.inf], np.nan).dropna()
        return [joined.iloc[:, i].to_numpy(dtype=float) for i in range(len(wanted))]


def _below(*others: str) -> Callable[[_Values, ClaimSettings], list[Evidence]]:
    def evidence(values: _Values, settings: ClaimSettings) -> list[Evidence]:
        return [_rise_ratio(values, other, settings) for other in others]

    return evidence


def _rise_ratio(values: _Values, other: str, settings: ClaimSettings) -> Evidence:
    """Bi-LoRA's worst-case rise over another method's, as a ratio of geometric means.

    Rises span decades, so that a difference in nats is that of the sharpest seed; t-tests are on log ratios. A pair of
    which a rise is not positive has no logarithm and is left out, as ``reading`` says.
    """
    pairs = values.pairs((BILORA, "worst_case_rise"), (other, "worst_case_rise"))
    kept = (pairs[0] > 0) & (pairs[1] > 0)
    logs = paired(np.log(pairs[0][kept] / pairs[1][kept]))
    left_out = int((~kept).sum())
    reading = f"worst-case rise of bilora over {other}'s, ratio of geometric means; margin {settings.rise_margin:g}"
    reading += f"; {left_out} pairs without a rise left out" if left_out else ""
    effect, low, high = (_exp(value) for value in (logs.effect, logs.low, logs.high))
    smallest = logs.smallest_effect(settings.alpha)
    part = Part(
        f"bilora / {other}",
        effect,
        low,
        high,
        "ratio",
        logs.n,
        both(logs.p_below, logs.p_above),
        reading,
        logs.p_outside(math.log(settings.rise_margin)),
        None if smallest is None else _exp(smallest),
    )
    return Evidence(part, logs.p_below, logs.p_above)


def answer(records: pd.DataFrame, settings: ClaimSettings, judged: Sequence[Claim]) -> str:
    """The question in one sentence: how sharp Bi-LoRA's minima are against full-space SAM's and LoRA's.

    Against LoRA the verdict is claim 1's; the ratio to full-space SAM is no claim's: it is judged alone, at the
    settings' level, and has its p-value beside it. Empty where the study has neither comparison.
    """
    table, present, found = _Values(records, settings.rho), set(records["method"]), []
    for other, name in (("lora_sam_full", "full-space SAM's"), (LORA, "LoRA's")):
        if {BILORA, other} <= present:
            alone = verdicts([(1, "", [_rise_ratio(table, other, settings)])], alpha=settings.alpha, family="ratios")
            verdict = next(claim.verdict for claim in (judged if other == LORA else alone) if claim.number == 1)
            part = alone[0].parts[0]
            if math.isfinite(part.high) and part.n:
                words = {
                    "supported": "flatter",
                    "contradicted": "sharper",
                    "equivalent": f"equal within a factor of {settings.rise_margin:g}",
                    "undecided": "undecided",
                }
                shown = f"{part.effect:.2f} × [{part.low:.2f}, {part.high:.2f}]"
                source = "claim 1" if other == LORA else f"alone, p = {alone[0].p_value:.1g}"
                found.append(f"{shown} as sharp as {name} ({words[verdict]}; {source})")
    if not found:
        return ""
    rho = f"{settings.rho:g}"
    return (
        f"Bi-LoRA's minima are {' and '.join(found)}: ratios of worst-case loss rises at rho = {rho}, 95 % intervals."
    )


def _recovered(values: _Values, settings: ClaimSettings) -> list[Evidence]:
    found = []
    for reference in FULL_SAM:
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
        part = Part(f"share of {reference}", ratio, low, high, "share", contrast.n, both(p_for, p_against), reading)
        found.append(Evidence(part, p_for, p_against))
    return found


def _accuracy(values: _Values, settings: ClaimSettings) -> list[Evidence]:
    ours, theirs = values.pairs((BILORA, "test_accuracy"), (LORA, "test_accuracy"))
    result = paired(100 * (ours - theirs))
    reading = "test accuracy of bilora minus lora's, in percentage points"
    return [higher_is_better(result, "bilora − lora", "points", reading)]


def _step_time(values: _Values, settings: ClaimSettings) -> list[Evidence]:
    found = []
    for other, limit in ((LORA, settings.step_ratio), ("lora_sam", 1.0)):
        ours, theirs = values.pairs((BILORA, "step_seconds"), (other, "step_seconds"))
        logs = paired(np.log(ours / theirs))
        against = paired(np.log(ours / theirs) - math.log(limit))
        effect, low, high = (_exp(value) for value in (logs.effect, logs.low, logs.high))
        reading = f"step time of bilora over {other}'s (limit {limit:g}); pairs are interleaved rounds in one process"
        p_value = both(against.p_below, against.p_above)
        part = Part(f"bilora / {other}", effect, low, high, "ratio", logs.n, p_value, reading)
        found.append(Evidence(part, against.p_below, against.p_above))
    return found


def _captured(values: _Values, settings: ClaimSettings) -> list[Evidence]:
    measures = ("captured_energy", "captured_energy_null", "captured_energy_optimum")
    ours, null, best = values.pairs(*((BILORA, measure) for measure in measures))
    reading = "share of the dominant eigenvectors in the auxiliary's column space, minus the random expectation"
    if len(ours):
        reading += f" of {_percent(null.mean())}; a space of that rank can hold at most {_percent(best.mean())}"
    return [higher_is_better(paired(ours - null), "auxiliary − random", "share", reading)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0)) if math.isfinite(value) else (0.0 if value == -math.inf else value)
