"""The report of a study: figures, tables and one self-contained page, from the files in its folder."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from analyses.records import read_json, read_records, write_atomically
from reports.alignment_tables import alignment_table, angle_table, inside_table, module_table
from reports.claims import by_family, claim_interval, claims_table, details
from reports.correlations import correlation_table
from reports.figures import draw_all
from reports.sharpness_tables import ball_table, few_examples, measures_table, search_table
from reports.tables import (
    agreement_table,
    cost_table,
    difference_table,
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
    claims = read_json(folder / "claims.json")
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
        "correlations": correlation_table(_optional(folder / "correlations.json", [])),
    }
    write_tables(tables, folder / "tables")
    settings, made = folder / "study.yaml", _optional(folder / "environment.json", [])
    page = template("report.html.j2").render(
        study=_study_name(records),
        claims=claims,
        families=by_family(claims["claims"]),
        figures=figures,
        few_examples=few_examples(records, rho=claims["rho"]),
        tables={name: rows_of(shown) for name, (shown, _) in tables.items()},
        failures=_optional(folder / "failures.json", []),
        diverged=_optional(folder / "diverged.json", []),
        environments=[made] if isinstance(made, dict) else made,
        settings=settings.read_text() if settings.exists() else "",
        num_runs=len(records[records["measure"] == "train_loss"]),
    )
    path = folder / "report.html"
    write_atomically(path, lambda temporary: temporary.write_text(page))
    return path


def template(name: str) -> Template:
    """A page's template, which escapes all that it shows."""
    environment = Environment(
        loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"significant": significant, "embed": _embed}
    environment.globals |= {"claim_interval": claim_interval, "quantity": quantity, "details": details}
    return environment.get_template(name)


def rows_of(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """A table as templates show it."""
    return {"columns": list(frame.columns), "rows": frame.to_numpy().tolist()}


def _study_name(records: pd.DataFrame) -> str:
    return str(records["study"].iloc[0]) if len(records) else "empty study"


def _embed(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _optional(path: Path, default: Any) -> Any:
    return read_json(path) if path.exists() else default
