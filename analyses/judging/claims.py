"""The claims of a study judged from its records: what supports them, family by family, and the question's answer."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
import yaml

from analyses.judging.evidence import Evidence, diverged, weigh, with_power
from analyses.judging.families import Adjusted, fallback, holm
from analyses.judging.looks import Looks
from analyses.judging.values import Values
from analyses.judging.verdict import Verdict, decide
from analyses.study import ClaimFile, ClaimSettings, ClaimSpec
from analyses.study.claim_settings import SHARE

PROCEDURES = {
    "outcome": "fallback procedure in the order of the claims",
    "mechanism": "Holm's procedure",
    "controls": "Holm's procedure",
    "cost": "counted exactly",
}
"""Families in the order in which they are shown, and what holds each to the level."""


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict.

    Attributes:
        number: Place among the claims judged.
        name: Name of the claim.
        family: Its family.
        statement: The claim in words.
        subject: Label of the claim's subject.
        short: What the opening sentence says of the subject, ``{effect}`` left open; empty where it says nothing.
        verdict: See `judge`.
        p_value: The smaller of the p-values of a direction and of equivalence; None where nothing is tested.
        p_adjusted: The same within its family.
        level: Level at which the claim is decided.
        procedure: What the p-values went through.
        evidence: The comparison.
    """

    number: int
    name: str
    family: str
    statement: str
    subject: str
    short: str
    verdict: Verdict
    p_value: float | None
    p_adjusted: float | None
    level: float | None
    procedure: str
    evidence: Evidence


@dataclass(frozen=True)
class _Draft:
    key: str
    claim: ClaimSpec
    statement: str
    subject: str
    short: str
    evidence: Evidence


def judge(records: pd.DataFrame, settings: ClaimSettings, looks: Looks | None = None) -> list[Judged]:
    """Judge every claim whose roles the study fills and for which something was recorded.

    A claim is **equivalent** if two one-sided tests put the effect within the margin, **supported** or **contradicted**
    if a two-sided test puts it on one side of the limit, all at the level that its family leaves it; equivalence,
    where it is shown, goes before a direction, since a difference within the margin is none that matters. Else it is
    **undecided**. A claim that says "equivalent" is supported by equivalence, and contradicted by an effect beyond the
    margin.

    Args:
        records: Records of the study.
        settings: Level, thresholds and claims.
        looks: Earlier looks at a study that grows until it is decided; None for a fixed number of seeds.

    Returns:
        The claims, family by family.
    """
    drafts, _ = _drafts(records, settings)
    return _judged(drafts, settings, looks)


def claims_document(records: pd.DataFrame, settings: ClaimSettings, looks: Looks | None = None) -> dict[str, Any]:
    """The judged claims as plain data, with what decided them and what could not be judged."""
    drafts, missing = _drafts(records, settings)
    judged = _judged(drafts, settings, looks)
    return {
        "rho": settings.rho,
        "alpha": settings.alpha,
        "sentence": answer(judged, settings),
        "design": looks.description if looks else "",
        "families": PROCEDURES,
        "claims": [{**asdict(one), **asdict(one.evidence)} | {"evidence": None} for one in judged],
        "not_judged": missing,
    }


def evidence_of(records: pd.DataFrame, settings: ClaimSettings) -> dict[str, Evidence]:
    """What the records say about each claim, by its name, whatever the number of looks."""
    return {draft.key: draft.evidence for draft in _drafts(records, settings)[0]}


def claim_file(settings: ClaimSettings) -> ClaimFile:
    """The study's own claims, or the bundled ones."""
    return settings.file or _bundled(settings.bundled)


def answer(judged: Sequence[Judged], settings: ClaimSettings) -> str:
    """The claims that have a short form in one sentence; empty where there is none.

    A claim that is judged at several columns, as at ranks, is said once, with the range of its effects.
    """
    told = [one for one in judged if one.short and not math.isnan(one.evidence.effect)]
    together: dict[str, list[Judged]] = defaultdict(list)
    for one in told:
        together[one.name.partition("@")[0]].append(one)
    parts: list[str] = []
    before = ""
    for same in together.values():
        subject, said = _said(same[0]) if len(same) == 1 else _said_together(same)
        parts.append(f"its {said}" if subject == before else f"{subject}'s {said}")
        before = subject
    if not parts:
        return ""
    medians = any(diverged(one.evidence) for one in told)
    means = "geometric means, medians where runs diverged" if medians else "geometric means"
    intervals = ", 95 % intervals" if any(len(same) == 1 for same in together.values()) else ""
    return f"{'; '.join(parts)} ({means}{intervals}; rises at rho = {settings.rho:g})."


def _said(one: Judged) -> tuple[str, str]:
    """Subject of a claim, and what is said of it."""
    found = one.evidence
    bounded = math.isfinite(found.low) and math.isfinite(found.high) and (found.low > 0 or found.unit != "ratio")
    lost = diverged(found)
    ends = f"[{_digits(found.low)}, {_digits(found.high)}]"
    within = ends if bounded else f"(unbounded{f'; {lost}' if lost else ''})"
    effect = " ".join(part for part in (_times(found.effect), _unit(found), within) if part)
    return one.subject, f"{one.short.format(effect=effect)}: {one.verdict}"


def _said_together(same: Sequence[Judged]) -> tuple[str, str]:
    """The same of one claim at several columns, whose names stand in the verdicts' table."""
    effects = [one.evidence.effect for one in same]
    span = " to ".join(dict.fromkeys((_times(min(effects)), _times(max(effects)))))
    effect = " ".join(part for part in (span, _unit(same[0].evidence)) if part)
    counts = Counter(one.verdict for one in same)
    first, *others = (f"{verdict} at {count}" for verdict, count in counts.items())
    verdicts = ", ".join([f"{first} of {len(same)}", *others])
    subject, short = same[0].subject, same[0].short
    for column in same[0].name.partition("@")[2].split("+"):
        subject, short = (text.replace(f" ({column})", "") for text in (subject, short))
    return subject, f"{short.format(effect=effect)}: {verdicts}"


def _times(effect: float) -> str:
    return "infinitely many" if math.isinf(effect) else _digits(effect)


def _unit(found: Evidence) -> str:
    return "×" if found.unit == "ratio" else {"share": "of it"}.get(found.unit, found.unit)


def _digits(value: float) -> str:
    """Two decimals, or three digits of what is small or large."""
    return f"{value:.2f}" if value == 0 or 0.1 <= abs(value) < 1000 else f"{value:.3g}"


@cache
def _bundled(name: str) -> ClaimFile:
    text = (resources.files("analyses") / "judging" / f"{name}.yaml").read_text()
    return ClaimFile.model_validate(yaml.safe_load(text))


def _drafts(records: pd.DataFrame, settings: ClaimSettings) -> tuple[list[_Draft], list[dict[str, str]]]:
    values, content = Values(records, settings), claim_file(settings)
    given = content.roles if settings.roles is None else settings.roles
    role_sets = given if isinstance(given, list) else [given]
    defaults = content.roles if isinstance(content.roles, dict) else {}
    drafts, missing = [], []
    seen: set[str] = set()
    for family in PROCEDURES:
        for claim in content.claims:
            for roles in role_sets if claim.family == family else []:
                columns = {role: (defaults | roles).get(role, role) for role in claim.roles}
                key = claim.name + (f"@{'+'.join(columns.values())}" if len(role_sets) > 1 else "")
                if key in seen:  # role sets that differ in other roles alone
                    continue
                seen.add(key)
                labels = _labels(columns, content) | {SHARE: _in_words(settings.recovered_share)}
                statement = claim.sentence.format_map(labels)
                absent = sorted({column for column in columns.values() if column not in values.columns})
                reason = f"the study lacks {', '.join(absent)}" if absent else _nothing(claim, columns, values)
                evidence = None if absent else weigh(claim, columns, values, settings)
                if evidence is None:
                    missing.append({"name": key, "family": family, "statement": statement, "reason": reason})
                else:
                    short = (claim.short or "").format_map({**labels, "effect": "{effect}"})
                    drafts.append(_Draft(key, claim, statement, labels[claim.subject], short, evidence))
    return drafts, missing


def _nothing(claim: ClaimSpec, columns: Mapping[str, str], values: Values) -> str:
    """Why there are no values to compare."""
    if claim.where and values.has(columns[claim.subject], claim.measure):
        rows = ", ".join(f"{column}: {value}" for column, value in claim.where.items())
        return f"no records of {claim.measure} are left by where ({rows}) in both"
    return f"nothing recorded of {claim.measure}"


def _labels(columns: Mapping[str, str], content: ClaimFile) -> dict[str, str]:
    """What sentences call the roles: with the column's name where it is not the role's usual one."""
    usual = content.roles if isinstance(content.roles, dict) else {}
    labels = {}
    for role in {*columns, *content.labels}:
        label, column = content.labels.get(role, role), columns.get(role, usual.get(role, role))
        labels[role] = label if column == usual.get(role, role) else f"{label} ({column})"
    return labels


def _in_words(share: float) -> str:
    return "half" if share == 0.5 else f"{share:g}"


def _judged(drafts: Sequence[_Draft], settings: ClaimSettings, looks: Looks | None) -> list[Judged]:
    judged: list[Judged] = []
    for family, procedure in PROCEDURES.items():
        own = [draft for draft in drafts if draft.claim.family == family]
        if looks is not None and family != "cost":
            own = [replace(draft, evidence=looks.allowed_for(draft.key, draft.evidence)) for draft in own]
        smaller = [min(draft.evidence.p_directed, draft.evidence.p_equivalent) for draft in own]
        if family == "outcome":
            places = fallback(smaller, [draft.claim.weight for draft in own], alpha=settings.alpha) if own else []
        else:
            places = holm(smaller, alpha=settings.alpha)
        for draft, p, place in zip(own, smaller, places, strict=True):
            common = (len(judged) + 1, draft.key, family, draft.statement, draft.subject, draft.short)
            if family == "cost":
                judged.append(Judged(*common, _counted(draft), None, None, None, procedure, draft.evidence))
                continue
            over = f"{len(own)} claim{'' if len(own) == 1 else 's'}"
            through, verdict = f"{procedure} over {over}", _verdict(draft, place)
            # A claim that those before it left no level would be tested at its part of the family's.
            evidence = with_power(draft.claim, draft.evidence, place.level or settings.alpha / len(own))
            judged.append(Judged(*common, verdict, p, place.p_value, place.level, through, evidence))
    return judged


def _verdict(draft: _Draft, place: Adjusted) -> Verdict:
    evidence = draft.evidence
    verdict = decide(evidence.p_for, evidence.p_against, evidence.p_equivalent, place)
    return "supported" if verdict == "equivalent" and draft.claim.direction == "equivalent" else verdict


def _counted(draft: _Draft) -> Verdict:
    """Numbers that are counted have no error: how far the effect itself lies above the limit, against the margin."""
    evidence, direction = draft.evidence, draft.claim.direction
    if math.isnan(evidence.effect):
        return "undecided"
    if draft.claim.scale == "ratio":
        slack = math.log(evidence.margin or 1.0)
        above = math.log(evidence.effect / evidence.limit) if evidence.effect > 0 else -math.inf
    else:
        above, slack = evidence.effect - evidence.limit, evidence.margin or 0.0
    rounding = 1e-9 * max(1.0, abs(evidence.limit))
    holds = {
        "below": above < -rounding,
        "above": above > rounding,
        "not_above": above <= slack + rounding,
        "not_below": above >= -slack - rounding,
        "equivalent": abs(above) <= slack + rounding,
    }[direction]
    return "supported" if holds else "contradicted"
