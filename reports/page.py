"""The report of a study: figures, tables and one self-contained page, from the files in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from analyses.records import RecordsError, read_json, read_records, write_atomically, write_json
from reports.alignment_tables import alignment_table, angle_table, inside_table, module_table
from reports.charts import charts_of, plotly_source
from reports.claims import by_family, claim_interval, claims_table, details, summary, tested
from reports.correlations import correlation_table
from reports.evidence import interval_bar, methods_option, slope_plot
from reports.figures import draw_all
from reports.figures.worst_case import searched_by
from reports.methods_text import bibliography, methods_paragraph
from reports.sharpness_tables import ball_table, few_examples, measures_table, search_table
from reports.style import told_apart
from reports.tables import (
    agreement_table,
    cost_table,
    difference_table,
    main_table,
    pyhessian_table,
    quantity,
    said,
    significant,
    write_tables,
    write_text,
)
from reports.units import loss_unit, units_of


def write_report(folder: Path) -> Path:
    """Draw figures, write tables and the page.

    Args:
        folder: Holds ``records.parquet``, ``claims.json``, ``study.yaml``, ``failures.json``, ``environment.json``.

    Returns:
        Path of ``report.html``.
    """
    records = read_records(folder / "records.parquet")
    with units_of(folder), told_apart(records["method"].dropna()):
        return _written(folder, records)


def _written(folder: Path, records: pd.DataFrame) -> Path:
    claims = read_json(folder / "claims.json")
    failures, diverged = (_optional(folder / f"{name}.json", "cell", "reason") for name in ("failures", "diverged"))
    made, correlations = (_optional(folder / f"{name}.json") for name in ("environment", "correlations"))
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
        "correlations": correlation_table(correlations),
    }
    tables = {name: said(*pair) for name, pair in tables.items()}
    write_tables(tables, folder / "tables")
    num_runs = int((records["measure"] == "train_loss").sum())
    short = summary(claims, study=_study_name(records), runs=num_runs, failed=len(failures), diverged=len(diverged))
    write_json(folder / "summary.json", short)
    settings = folder / "study.yaml"
    text = settings.read_text() if settings.exists() else ""
    if len(records):
        paragraph = methods_paragraph(yaml.safe_load(text) or {}, records, claims)
        for name, content in {"methods.tex": paragraph, "references.bib": bibliography(paragraph)}.items():
            write_atomically(folder / name, partial(write_text, content))
    page = render(
        "report.html.j2",
        _SECTIONS,
        study=_study_name(records),
        claims=claims,
        families=by_family(claims["claims"]),
        charts=charts_of(records, rho=claims["rho"], tried=folder / "tuning.csv"),
        figures=figures,
        few_examples=few_examples(records, rho=claims["rho"]),
        tables={name: rows_of(shown) for name, (shown, _) in tables.items()},
        failures=failures,
        diverged=diverged,
        environments=made,
        settings=text,
        num_runs=num_runs,
        searched_by=searched_by(records),
    )
    path = folder / "report.html"
    write_atomically(path, lambda temporary: temporary.write_text(page))
    return path


_SECTIONS = {
    "verdicts": "Verdicts", "charts": "Look", "numbers": "Main results", "correlations": "Flatness and generalisation",
    "measures": "Three measures", "exact": "How exact", "figures": "Figures", "subspaces": "Subspaces",
    "cost": "Cost", "solvers": "Eigensolvers", "repeat": "How to repeat it", "failed": "Failed cells",
    "diverged": "Runs that diverged",
}  # fmt: skip


def render(name: str, sections: Mapping[str, str], **content: Any) -> str:
    """A page from its template, with a list of those of its sections that it has.

    Args:
        name: Of the template, which escapes all that it shows.
        sections: Titles by anchor, in order.
        content: What the template shows.
    """
    page = _template(name)
    bare = page.render(sections=[], **content)
    there = [(anchor, title) for anchor, title in sections.items() if f'<h2 id="{anchor}">' in bare]
    return page.render(sections=there, **content)


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"significant": significant, "embed": _embed}
    environment.globals |= {"claim_interval": claim_interval, "quantity": quantity, "details": details}
    environment.globals |= {"loss_unit": loss_unit()}
    environment.globals |= {"interval_bar": interval_bar, "slope_plot": slope_plot, "methods_option": methods_option}
    environment.globals["tested"] = tested
    environment.globals |= {"plotly_source": lambda: Markup(plotly_source().replace("</script", r"<\/script"))}
    return environment.get_template(name)


def rows_of(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """A table as templates show it."""
    return {"columns": list(frame.columns), "rows": frame.to_numpy().tolist()}


def _study_name(records: pd.DataFrame) -> str:
    return str(records["study"].iloc[0]) if len(records) else "empty study"


def _embed(path: Path) -> str:
    text = path.with_suffix(".svg").read_text(encoding="utf-8")
    # As text, which is a quarter shorter than in base64; readers of addresses drop line ends.
    return "data:image/svg+xml;charset=utf-8," + quote(" ".join(text.split("\n")), safe=" /:=;,.-+")


def _optional(path: Path, *keys: str) -> list[dict[str, Any]]:
    """The entries of a file of the folder, also of one that holds a single one; none where there is no file.

    Args:
        path: JSON.
        keys: What each entry has to have.

    Raises:
        RecordsError: It holds something else.
    """
    content = read_json(path) if path.exists() else []
    entries = [content] if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(isinstance(one, dict) and {*keys} <= {*one} for one in entries):
        what = f"entries with {', '.join(keys)}" if keys else "entries"
        raise RecordsError(f"{path} cannot be read as what the study wrote: expected {what}, got {content!r:.60}")
    return entries
