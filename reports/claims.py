"""The judged claims as a table, as plain text and as what the page shows of them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.tables import NOTHING, UNBOUNDED, interval, quantity, significant

TITLES = {
    "outcome": "Outcome: flatness and generalisation",
    "mechanism": "Mechanism: the auxiliary's space and the propositions",
    "controls": "Controls: is it the ascent?",
    "cost": "Cost of a step",
}
"""Titles of the families, in the order in which they are shown."""
_PLAIN = (
    "number", "name", "family", "statement", "verdict", "p_adjusted", "p_value", "procedure", "comparison", "effect",
    "low", "high", "unit", "n", "limit", "margin", "p_for", "p_against", "p_equivalent", "test", "bootstrap_low",
    "bootstrap_high", "p_sign_flip", "smallest_effect", "runs_needed", "spread", "search_error", "note",
)  # fmt: skip
SUMMARY = (
    "number", "name", "family", "statement", "verdict", "comparison", "effect", "low", "high", "unit", "n", "limit",
    "margin", "p_adjusted", "smallest_effect", "search_error",
)  # fmt: skip
"""What the summary keeps of each claim."""
_COLOURS = {"supported": "green", "contradicted": "red", "equivalent": "cyan", "undecided": "yellow"}
_COLUMNS: Mapping[str, Mapping[str, Any]] = {
    "": {"justify": "right"}, "claim": {"ratio": 3}, "effect, 95 % interval": {"ratio": 2, "justify": "right"},
    "runs": {"justify": "right"}, "p": {"justify": "right"}, "verdict": {"no_wrap": True},
}  # fmt: skip


def tested(claim: Mapping[str, Any]) -> str | None:
    """Which test the p-value is of, the better of two: ``direction`` or ``equivalence``; None where none is tested."""
    if claim["p_adjusted"] is None:
        return None
    directed = min(1.0, 2 * min(claim["p_for"], claim["p_against"]))
    return "equivalence" if claim["p_equivalent"] < directed else "direction"


def adjusted_p(claim: Mapping[str, Any]) -> str:
    """The p-value within the family, and of what test it is where that is not the one of a direction."""
    return significant(claim["p_adjusted"]) + (" (equivalence)" if tested(claim) == "equivalence" else "")


def claims_table(claims: Sequence[Mapping[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a claim: effect, interval, adjusted p-value and verdict."""
    shown = [
        {
            "claim": str(claim["number"]),
            "statement": claim["statement"],
            "comparison": claim["comparison"],
            "effect": quantity(claim["effect"], claim["unit"]),
            "95 % interval": claim_interval(claim),
            "adjusted p": adjusted_p(claim),
            "verdict": claim["verdict"],
        }
        for claim in claims
    ]
    return pd.DataFrame(shown), pd.DataFrame([{key: claim[key] for key in _PLAIN} for claim in claims])


def by_family(claims: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Claims by the title of their family, in order; families without claims are left out."""
    grouped = {title: [one for one in claims if one["family"] == family] for family, title in TITLES.items()}
    return {title: own for title, own in grouped.items() if own}


def claim_interval(claim: Mapping[str, Any]) -> str:
    """Its interval; ``unbounded`` where the data leave it open, a word for what is counted."""
    if claim["family"] == "cost":
        return "counted"
    if claim["low"] is None or claim["high"] is None:
        return NOTHING if claim["effect"] is None else UNBOUNDED
    return interval(claim["low"], claim["high"])


def details(claim: Mapping[str, Any]) -> str:
    """What stands beside the interval, in one line of words; nothing where costs are counted."""
    if claim["family"] == "cost":
        return ""
    parts = [f"n = {claim['n']} pairs"]
    if claim["p_for"] is not None:
        directed = min(1.0, 2 * min(claim["p_for"], claim["p_against"]))
        parts.append(f"p = {significant(directed)} ({claim['test']})")
        parts.append(f"under changes of signs p = {significant(claim['p_sign_flip'])}")
    if None not in (claim["bootstrap_low"], claim["bootstrap_high"]):
        parts.append(f"bootstrap {interval(claim['bootstrap_low'], claim['bootstrap_high'])}")
    if claim["margin"] is not None:
        beyond = "" if claim["p_equivalent"] == 1 else f", beyond it p = {significant(claim['p_equivalent'])}"
        parts.append(f"margin {claim['margin']:.3g}{beyond}")
    if claim["smallest_effect"] is not None:
        seen = quantity(claim["smallest_effect"], claim["unit"])
        parts.append(f"these runs would find {seen} with 80 % power")
    if claim["verdict"] == "undecided" and claim["runs_needed"] is not None:
        parts.append(f"this effect would take about {claim['runs_needed']} runs")
    if claim["search_error"] is not None and claim["spread"] is not None:
        parts.append(f"search error {claim['search_error']:.2g} against a spread of {claim['spread']:.2g} log units")
    if claim["by_size"]:
        sizes = ", ".join(f"{size}: {significant(value)}" for size, value in claim["by_size"].items())
        parts.append(f"by training-set size {sizes} (sizes fixed, seeds random; every seed is its mean over sizes)")
    return "; ".join([*parts, claim["note"]] if claim["note"] else parts)


def print_claims(document: Mapping[str, Any], console: Console | None = None) -> None:
    """The answer and a table of verdicts in a terminal; plain text (`claims_text`) where the output is none."""
    console = console or Console()
    if not console.is_terminal:
        print(claims_text(document))
        return
    if document["sentence"]:
        console.print(Text(document["sentence"], style="bold"))
    for title, claims in by_family(document["claims"]).items():
        table = Table(title=f"{title} ({claims[0]['procedure']})", title_justify="left", expand=True)
        for heading, options in _COLUMNS.items():
            table.add_column(heading, **options)
        for claim in claims:
            verdict = Text(claim["verdict"], style=_COLOURS[claim["verdict"]])
            effect = f"{quantity(claim['effect'], claim['unit'])} {claim_interval(claim)}"
            p_value = "" if claim["p_adjusted"] is None else adjusted_p(claim)
            table.add_row(
                str(claim["number"]), Text(claim["statement"]), Text(effect), str(claim["n"]), p_value, verdict
            )
        console.print(table)
    if not document["claims"]:
        console.print("No claim is judged: the study lacks the methods that they compare.")


def summary(document: Mapping[str, Any], *, study: str, runs: int, failed: int, diverged: int) -> dict[str, Any]:
    """What ``summary.json`` holds: the answer and the verdicts for programs; docs/report.md has its schema."""
    return {
        "schema": 1,
        "study": study,
        "sentence": document["sentence"],
        "rho": document["rho"],
        "alpha": document["alpha"],
        "runs": runs,
        "failed": failed,
        "diverged": diverged,
        "claims": [{key: claim[key] for key in SUMMARY} | {"p_test": tested(claim)} for claim in document["claims"]],
        "not_judged": [one["name"] for one in document["not_judged"]],
    }


def claims_text(document: Mapping[str, Any]) -> str:
    """The answer and the verdicts as plain text for a terminal."""
    lines = [*textwrap.wrap(document["sentence"], 100), ""] if document["sentence"] else []
    lines += [*textwrap.wrap(document["design"], 100), ""] if document["design"] else []
    for title, claims in by_family(document["claims"]).items():
        heading = f"{title} ({claims[0]['procedure']})"
        lines += [heading, "-" * len(heading)]
        for claim in claims:
            wrapped = textwrap.wrap(claim["statement"], 60)
            p_value = "" if claim["p_adjusted"] is None else f" p = {adjusted_p(claim)}"
            lines.append(f"{claim['number']:>3} {wrapped[0]:<62}{claim['verdict']:<13}{p_value}".rstrip())
            lines += [f"    {line}" for line in wrapped[1:]]
            effect = quantity(claim["effect"], claim["unit"])
            lines.append(f"      {claim['comparison']:<40} {effect:<18} {claim_interval(claim)}")
    if not document["claims"]:
        lines.append("No claim is judged: the study lacks the methods that they compare.")
    if document["not_judged"]:
        names = ", ".join(one["name"] for one in document["not_judged"])
        lines += ["", *textwrap.wrap(f"Not judged, for want of methods or records: {names}.", 100)]
    return "\n".join(lines)
