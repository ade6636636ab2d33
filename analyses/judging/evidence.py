"""A claim's comparison, worked out from the values of the runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.judging.power import runs_needed, smallest_effect
from analyses.judging.statistics import Comparison, bootstrap_interval, fieller, paired, sign_flip, signed_ranks
from analyses.judging.values import Values
from analyses.records.seeds import by_seed
from analyses.study import ClaimSettings, ClaimSpec

Array = NDArray[np.float64]
_DOWN = ("below", "not_above", "equivalent")
_HIGH_IS_GOOD = ("accuracy",)
_LOW_IS_GOOD = (
    "loss", "rise", "error", "sharpness", "eigenvalue", "trace", "gradient_norm", "barrier", "gap", "seconds", "passes",
    "flops", "bytes",
)  # fmt: skip
"""Words in the names of measures."""


@dataclass(frozen=True)
class Evidence:
    """What the records say about one claim; effects and intervals are in ``unit``.

    Attributes:
        comparison: What is compared with what.
        effect: Estimate.
        low: Lower end of its 95 % interval.
        high: Upper end.
        unit: Of effect and interval.
        n: Number of pairs.
        limit: Effect that separates support from contradiction.
        margin: Effects so near to no effect count as equal; None without one.
        p_for: One-sided p-value for the claim.
        p_against: One-sided p-value for its contrary.
        p_equivalent: P-value of two one-sided tests against the margin; 1 without one.
        test: How the p-values came about.
        bootstrap_low: Lower end of the bootstrap interval (BCa).
        bootstrap_high: Upper end.
        p_sign_flip: Two-sided exact p-value under changes of signs.
        contrast: Mean of what the test holds against 0, in the units of ``spread``.
        smallest_effect: Effect that so many pairs with this spread find with 80 % power at the level of the claim;
            None where not worked out. See `with_power`.
        runs_needed: Pairs with which this effect and spread would be decided at that level; None where not worked out.
        spread: Standard deviation over the pairs, in log units for ratios.
        search_error: For worst cases, the root mean square over pairs of what the poorer search lacks, in log units.
        by_size: Effect by size of the training set, where the study has several.
        note: What else a reader must know.
        pairs: The values compared, run by run: ``train_size``, ``seed``, ``subject``, ``reference`` and, for shares of
            a reduction, ``baseline``.
        columns: Columns of the study that are compared, a baseline among them.
    """

    comparison: str
    effect: float
    low: float
    high: float
    unit: str
    n: int
    limit: float
    margin: float | None
    p_for: float
    p_against: float
    p_equivalent: float
    test: str
    bootstrap_low: float
    bootstrap_high: float
    p_sign_flip: float
    spread: float
    search_error: float | None
    contrast: float = math.nan
    smallest_effect: float | None = None
    runs_needed: int | None = None
    by_size: dict[int, float] = field(default_factory=dict)
    note: str = ""
    pairs: list[dict[str, Any]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)

    @property
    def p_directed(self) -> float:
        """Two-sided p-value of the better supported direction."""
        return min(1.0, 2 * min(self.p_for, self.p_against))


def weigh(claim: ClaimSpec, columns: Mapping[str, str], values: Values, settings: ClaimSettings) -> Evidence | None:
    """Work out a claim's comparison; None where nothing was recorded for it.

    Ratios are of geometric means: t-tests and intervals are those of the log ratios, seed by seed. Shares are
    ratios of means in the measure's own units, with Fieller's interval; the test is that of numerator − limit ·
    denominator, and without a denominator above 0 there is no share to speak of. Where a run diverged, its value is
    the worst of all; there, and at ratios with one value of 0, signed ranks take the place of the t-test. With
    several training-set sizes every seed counts with its mean over them.

    Args:
        claim: The claim.
        columns: Column of the study by role.
        values: Values of the study.
        settings: Level and thresholds.
    """
    limit, margin = settings.threshold(claim.limit), settings.threshold(claim.margin)
    worst = _worst(claim)
    subject = values.series(columns[claim.subject], claim.measure, claim.where, worst=worst)
    named = [f"{columns[claim.subject]}"]
    if isinstance(claim.reference, str):
        where = claim.where if claim.reference_where is None else claim.reference_where
        measure = claim.reference_measure or claim.measure
        reference = values.series(columns[claim.reference], measure, where, worst=worst)
        same = claim.reference == claim.subject
        named.append(f"{columns[claim.reference]}{f' ({measure})' if same else ''}")
    else:
        reference = pd.Series(claim.reference, index=subject.index)
        named.append(f"{claim.reference:g}")
    pairs = pd.concat({"subject": subject, "reference": reference}, axis=1, join="inner")
    if claim.baseline is not None:
        baseline = values.series(columns[claim.baseline], claim.measure, claim.where, worst=worst)
        pairs = pairs.join(baseline.rename("baseline"), how="inner")
    if pairs.empty:
        return None
    scaled = {"ratio": _ratio, "difference": _difference, "share": _share}[claim.scale]
    evidence = scaled(claim, pairs, limit, margin)
    error = _search_error(claim, columns, values, pairs)
    comparison = {"ratio": " / ", "difference": " − ", "share": " of "}[claim.scale].join(named)
    if claim.scale == "difference" and not isinstance(claim.reference, str):
        comparison = f"{named[0]}, against {named[1]}"
    found = Evidence(
        comparison=comparison,
        search_error=error,
        **evidence,
        pairs=_by_run(pairs),
        columns=list(dict.fromkeys(columns.values())),
    )
    return replace(found, note=_joined(found.note, diverged(found)))


def _worst(claim: ClaimSpec) -> float:
    """What a run that diverged counts as: the bad end of the measure, whatever the claim says of it.

    Of a measure whose bad end nobody knows it is that which speaks against the claim.
    """
    if claim.worst is not None:
        return math.inf if claim.worst == "highest" else -math.inf
    if any(word in claim.measure for word in _HIGH_IS_GOOD):
        return -math.inf
    if any(word in claim.measure for word in _LOW_IS_GOOD):
        return math.inf
    against = math.inf if claim.direction in _DOWN else -math.inf
    return -against if claim.baseline is not None else against  # compared is what falls short of the baseline


def with_power(claim: ClaimSpec, evidence: Evidence, level: float) -> Evidence:
    """The evidence with what its runs could find, and how many would find its effect, at the level of the test.

    Args:
        claim: The claim.
        evidence: What `weigh` found.
        level: At which the claim's own p-values are held.
    """
    bound = evidence.margin
    if bound is not None and claim.scale == "ratio":
        bound = abs(math.log(bound))
    spread, equivalent = evidence.spread, claim.direction == "equivalent"
    smallest = smallest_effect(spread, evidence.n, alpha=level) if claim.scale != "share" else None
    if smallest is not None:
        ratio = claim.scale == "ratio"
        # Where the effect that is tested against is none, its distance; else the effect itself, on the claim's side.
        null = math.log(evidence.limit) if ratio else evidence.limit
        null += {"not_below": -1, "not_above": 1}.get(claim.direction, 0) * (bound or 0.0)
        side = -1.0 if claim.direction in ("below", "not_above") else 1.0
        smallest += (bound or 0.0) if equivalent else 0.0
        smallest = smallest if equivalent or null == 0 else null + side * smallest
        smallest = _exp(smallest) if ratio else smallest
    margin = bound if claim.direction in ("below", "above", "equivalent") and claim.scale != "share" else None
    needed = runs_needed(evidence.contrast, spread, alpha=level, margin=margin, equivalent=equivalent)
    return replace(evidence, smallest_effect=smallest, runs_needed=needed)


def diverged(evidence: Evidence) -> str:
    """How many of the runs compared have no finite value, in words; empty where all have."""
    sides = [side for side in ("subject", "reference", "baseline") if evidence.pairs and side in evidence.pairs[0]]
    lost = {side: sum(not math.isfinite(pair[side]) for pair in evidence.pairs) for side in sides}
    said = [f"{count} of {len(evidence.pairs)} runs of the {side}" for side, count in lost.items() if count]
    return f"{' and '.join(said)} have no finite value" if said else ""


def _by_run(pairs: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {"train_size": int(size), "seed": int(seed)} | {str(name): float(value) for name, value in row.items()}
        for (size, seed), row in zip(pairs.index, pairs.to_dict("records"), strict=True)
    ]


def _ratio(claim: ClaimSpec, pairs: pd.DataFrame, limit: float | None, margin: float | None) -> dict[str, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = {side: np.log(pairs[side]).mask(pairs[side] == -math.inf, -math.inf) for side in pairs}
        logs = parts["subject"] - parts["reference"]
    undefined = pairs.map(math.isfinite).all(axis=1) & (pairs < 0).any(axis=1)
    both_worst = ~np.isfinite(pairs["subject"]) & ~np.isfinite(pairs["reference"])
    logs = logs.mask(both_worst, 0.0).mask((pairs["subject"] == 0) & (pairs["reference"] == 0), 0.0)
    center = math.log(limit or 1.0)
    bound = None if margin is None else abs(math.log(margin))
    found = _tested(claim, logs[~undefined], center, bound)
    negative = ""
    if undefined.any():  # those left are no fair sample: whether a pair has a ratio depends on what is compared
        found |= {"p_for": 1.0, "p_against": 1.0, "p_equivalent": 1.0}
        negative = (
            f"{int(undefined.sum())} pairs have a negative value and no ratio, so that nothing is decided; use scale "
            "difference"
        )
    note = _joined(found["note"], negative)
    return found | {"note": note, "unit": "ratio", "limit": limit or 1.0, "margin": margin} | {
        key: _exp(value) for key in _EFFECTS if (value := found[key]) is not None
    } | {"by_size": {size: _exp(value) for size, value in found["by_size"].items()}}  # fmt: skip


_EFFECTS = ("effect", "low", "high", "bootstrap_low", "bootstrap_high")


def _difference(claim: ClaimSpec, pairs: pd.DataFrame, limit: float | None, margin: float | None) -> dict[str, Any]:
    against_number = not isinstance(claim.reference, str)
    both_worst = ~np.isfinite(pairs["subject"]) & ~np.isfinite(pairs["reference"])
    difference = (pairs["subject"] - pairs["reference"]).mask(both_worst, 0.0) * claim.times
    center = limit or 0.0
    found = _tested(claim, difference, center, margin)
    shift = claim.times * float(claim.reference) if against_number else 0.0
    moved = {key: found[key] + shift for key in ("effect", "low", "high", "bootstrap_low", "bootstrap_high")}
    by_size = {size: value + shift for size, value in found["by_size"].items()}
    fixed = {"unit": claim.unit, "limit": center + shift, "margin": margin, "by_size": by_size}
    return found | moved | fixed


def _share(claim: ClaimSpec, pairs: pd.DataFrame, limit: float | None, margin: float | None) -> dict[str, Any]:
    asked = 0.0 if limit is None else limit
    slack = {"not_below": -(margin or 0.0), "not_above": margin or 0.0}.get(claim.direction, 0.0)
    if claim.baseline is None:
        numerator, denominator = pairs["subject"], pairs["reference"]
    else:
        numerator, denominator = pairs["baseline"] - pairs["subject"], pairs["baseline"] - pairs["reference"]
    difference = numerator - (asked + slack) * denominator
    undefined = int(difference.isna().sum())
    contrast = _tested(claim, difference, 0.0, 0.0 if slack or claim.direction.startswith("not_") else None)
    above, sizes = by_seed(numerator)
    below, below_sizes = by_seed(denominator)
    above, below = above.align(below, join="inner")
    whole = np.isfinite(above) & np.isfinite(below)
    effect, low, high = fieller(above[whole].to_numpy(float), below[whole].to_numpy(float))
    if not whole.all():  # an interval over those alone that did not diverge would be of another sample than the test
        low, high = -math.inf, math.inf
    reduction = paired(below[whole].to_numpy(float))
    p_for, p_against = float(contrast["p_for"]), float(contrast["p_against"])
    # A denominator that is the same in every run, and positive, is a number and not an estimate.
    p_nothing = 0.0 if not reduction.spread > 0 and below[whole].gt(0).all() and len(below) > 1 else reduction.p_above
    p_for, p_against = max(p_for, p_nothing), max(p_against, p_nothing)
    what = "reduces it by" if claim.baseline is not None else "amounts to"
    shares = {size: float(one.mean() / below_sizes[size].mean()) for size, one in sizes.items() if size in below_sizes}
    return contrast | {
        "effect": effect, "low": low, "high": high, "unit": "share", "limit": asked, "margin": margin,
        "bootstrap_low": -math.inf, "bootstrap_high": math.inf, "by_size": shares,
        "p_for": p_for, "p_against": p_against, "note": _joined(
            contrast["note"],
            f"the reference itself {what} {reduction.effect:.3g}",
            "" if whole.all() else f"the share is that of {int(whole.sum())} pairs without a run that diverged",
            f"{undefined} pairs left out, in which what diverged leaves no share" if undefined else "",
        ),
        "test": f"{contrast['test']} of the contrast; Fieller's interval",
    }  # fmt: skip


def _tested(claim: ClaimSpec, differences: pd.Series, center: float, bound: float | None) -> dict[str, Any]:
    """Everything that one column of paired differences gives; ``center`` is the limit, ``bound`` the margin."""
    by_run, sizes = by_seed(differences.dropna())
    sample = by_run.to_numpy(dtype=float)
    finite = bool(np.isfinite(sample).all())
    compare: Callable[[Array], Comparison] = paired if finite else signed_ranks
    shown = compare(sample)
    null = center
    if claim.direction in ("not_below", "not_above"):
        assert bound is not None
        null = center - bound if claim.direction == "not_below" else center + bound
    tested = compare(sample - null)
    downwards = claim.direction in ("below", "not_above")
    p_for, p_against = (tested.p_below, tested.p_above) if downwards else (tested.p_above, tested.p_below)
    p_equivalent = 1.0
    if bound is not None and claim.direction in ("below", "above", "equivalent") and finite:
        p_equivalent = compare(sample - center).p_outside(bound)
    if claim.direction == "equivalent":
        assert bound is not None
        outside = [compare(sample - center - bound).p_above, compare(sample - center + bound).p_below]
        p_for, p_against = 1.0, min(outside)
    spread = shown.spread if finite else math.nan
    low, high = bootstrap_interval(sample) if finite else (-math.inf, math.inf)
    return {
        "effect": shown.effect, "low": shown.low, "high": shown.high, "n": shown.n,
        "p_for": p_for, "p_against": p_against, "p_equivalent": p_equivalent,
        "test": "paired t" if finite else "signed ranks, a run diverged or a value is 0",
        "bootstrap_low": low, "bootstrap_high": high,
        "p_sign_flip": sign_flip(sample - null) if finite else min(1.0, 2 * min(p_for, p_against)),
        "contrast": shown.effect - null,
        "note": _without_spread(shown, finite), "spread": spread,
        "by_size": {size: compare(one.to_numpy(float)).effect for size, one in sizes.items()},
    }  # fmt: skip


def _without_spread(shown: Comparison, finite: bool) -> str:
    """Why nothing can be tested, where that is so."""
    if shown.n == 0:
        return "no pair is left to compare: no seed has every training-set size, or no value is defined"
    if not finite or shown.spread > 0:
        return ""
    if shown.n == 1:
        return "one pair has no spread to test against; run more seeds"
    return "all pairs give the same effect: there is no spread to test against"


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _search_error(claim: ClaimSpec, columns: Mapping[str, str], values: Values, pairs: pd.DataFrame) -> float | None:
    """Root mean square, over pairs, of log(1 − gap) of the two rises added."""
    if claim.measure != "worst_case_rise" or not isinstance(claim.reference, str):
        return None
    methods = (columns[claim.subject], columns[claim.reference])
    gaps = [values.gaps(method, claim.where).reindex(pairs.index) for method in methods]
    errors = sum(-np.log1p(-gap.clip(upper=1 - 1e-12)) for gap in gaps).dropna()  # type: ignore[union-attr]
    return float(np.sqrt(np.mean(np.square(errors)))) if len(errors) else None


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0)) if math.isfinite(value) else (0.0 if value == -math.inf else value)
