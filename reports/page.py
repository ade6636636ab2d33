"""The report of a study: figures, tables and one self-contained page, from the files in its folder."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from analyses.records import read_json, read_records, write_atomically
from reports.alignment_tables import alignment_table, angle_table, inside_table, module_table
from reports.figures import draw_all
from reports.sharpness_tables import ball_table, few_examples, measures_table, search_table
from reports.tables import (
    agreement_table,
    claims_table,
    cost_table,
    difference_table,
    interval,
    main_table,
    pyhessian_table,
    quantity,
    significant,
    write_tables,
)


def write_report(folder: Path) -> Path:
    """Draw figures, write tables and the page.

    Args:
        folder: Holds ``records.parquet``, ``claims.json``, ``study.yaml``, ``failures.json``, ``environment.json``.

    Returns:
        Path of ``report.html``.
    """
    records = read_records(folder / "records.parquet")
    claims = {"propositions": [], "sentence": ""} | read_json(folder / "claims.json")
    figures = draw_all(records, rho=claims["rho"], folder=folder / "figures")
    tables = {
        "main": main_table(records, rho=claims["rho"]),
        "differences": difference_table(records, rho=claims["rho"]),
        "measures": measures_table(records, rho=claims["rho"]),
        "balls": ball_table(records),
        "searches": search_table(records),
        "alignment": alignment_table(records),
        "inside": inside_table(records, rho=claims["rho"]),
        "modules": module_table(records),
        "angles": angle_table(records),
        "cost": cost_table(records),
        "agreement": agreement_table(records),
        "pyhessian": pyhessian_table(records),
        "claims": claims_table(claims["claims"]),
        "propositions": claims_table(claims["propositions"]),
    }
    write_tables(tables, folder / "tables")
    settings, made = folder / "study.yaml", _optional(folder / "environment.json", [])
    environment = Environment(
        loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"significant": significant, "embed": _embed}
    environment.globals |= {"interval": interval, "quantity": quantity}
    page = environment.get_template("report.html.j2").render(
        study=_study_name(records),
        claims=claims,
        figures=figures,
        few_examples=few_examples(records, rho=claims["rho"]),
        tables={name: _rows(shown) for name, (shown, _) in tables.items()},
        failures=_optional(folder / "failures.json", []),
        diverged=_optional(folder / "diverged.json", []),
        environments=[made] if isinstance(made, dict) else made,
        settings=settings.read_text() if settings.exists() else "",
        num_runs=len(records[records["measure"] == "train_loss"]),
    )
    path = folder / "report.html"
    write_atomically(path, lambda temporary: temporary.write_text(page))
    return path


def claims_text(claims: Mapping[str, Any]) -> str:
    """The verdicts as plain text for a terminal."""
    titles = {
        "claims": "Claims (effect, 95 % interval; p after Holm's correction)",
        "propositions": "Propositions, from what was recorded along training",
    }
    opening = [claims["sentence"], ""] if claims.get("sentence") else []
    blocks = [[title, "-" * len(title), *_lines(claims[key])] for key, title in titles.items() if key in claims]
    return "\n".join([*opening, *(line for block in blocks for line in block)])


def _lines(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [] if claims else ["none: the study lacks the methods that they compare"]
    for claim in claims:
        for index, line in enumerate(textwrap.wrap(claim["statement"], 60)):
            left = f"({claim['number']})" if index == 0 else ""
            right = f"{claim['verdict']:<13} p = {significant(claim['p_adjusted'])}" if index == 0 else ""
            lines.append(f"{left:<4}{line:<62}{right}".rstrip())
        for part in claim["parts"]:
            effect = quantity(part["effect"], part["unit"])
            lines.append(f"      {part['name']:<24} {effect:<18} {interval(part['low'], part['high'])}")
    return lines


def _rows(frame: pd.DataFrame) -> dict[str, list[Any]]:
    return {"columns": list(frame.columns), "rows": frame.to_numpy().tolist()}


def _study_name(records: pd.DataFrame) -> str:
    return str(records["study"].iloc[0]) if len(records) else "empty study"


def _embed(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _optional(path: Path, default: Any) -> Any:
    return read_json(path) if path.exists() else default
