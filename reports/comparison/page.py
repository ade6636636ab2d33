"""The page of a comparison, from the files in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from analyses.records import read_json, read_records, write_atomically
from reports.charts import curves_chart
from reports.comparison import DESCRIPTION
from reports.comparison.caveats import caveats
from reports.comparison.figures import UNITS, plot_balls, plot_density, plot_paths, plot_plane
from reports.comparison.tables import shown_pairs, shown_summary
from reports.figures import Plan, draw_plans
from reports.figures.eigenvalues import plot_eigenvalues
from reports.page import render, rows_of
from reports.scales import losses_of
from reports.sharpness_tables import few_examples, search_table
from reports.style import styles_of
from reports.tables import write_tables
from reports.units import units_of


def write_comparison(folder: Path) -> Path:
    """Draw the figures, write the tables and the page.

    Args:
        folder: Holds ``records.parquet``, ``comparison.json``, ``environment.json`` and, where a comparison was made
            with settings, ``comparison.yaml``.

    Returns:
        Path of ``report.html``.
    """
    records, described = (
        read_records(folder / "records.parquet"),
        read_json(folder / DESCRIPTION, "names", "rho", "failures", "notes"),
    )
    names = described["names"]
    settings = folder / "comparison.yaml"
    with styles_of(names), units_of(folder):
        figures = draw_plans(comparison_plans(records), folder / "figures")
        tables = {
            "summary": shown_summary(records, names, described.get("own", ())),
            "pairs": shown_pairs(records),
            "searches": search_table(records),
        }
        write_tables(tables, folder / "tables")
        page = render(
            "comparison.html.j2",
            _SECTIONS,
            names=names,
            rho=described["rho"],
            caveats=[*described["notes"], *caveats(records, names)],
            failures=described["failures"],
            few_examples=few_examples(records, rho=described["rho"]),
            charts=[one for one in (curves_chart(records, balls=tuple(UNITS)),) if one is not None],
            figures=figures,
            tables={name: rows_of(shown) for name, (shown, _) in tables.items()},
            num_examples=int(records["train_size"].iloc[0]) if len(records) else 0,
            environments=[read_json(made)] if (made := folder / "environment.json").is_file() else [],
            settings=settings.read_text() if settings.exists() else "",
        )
    path = folder / "report.html"
    write_atomically(path, lambda temporary: temporary.write_text(page))
    return path


_SECTIONS = {
    "caveats": "Before you compare", "numbers": "Numbers", "between": "Between the minima", "charts": "Look",
    "figures": "Figures", "exact": "How exact", "repeat": "How to repeat it", "failed": "Failed measurements",
}  # fmt: skip


def comparison_plans(records: pd.DataFrame) -> Iterator[Plan]:
    """The figures of a comparison."""
    measure = records["measure"]
    yield Plan(
        "rises",
        records[(measure == "worst_case_rise") & (records["subspace"] == "full")],
        "Worst-case rise of the loss in balls around the minima, over the measured weights: the largest that two "
        "independent searches met, lower bounds of the true maximum. Every panel has the radii of its own ball.",
        lambda: plot_balls(records),
    )
    yield Plan(
        "eigenvalues",
        records[(measure == "hessian_eigenvalue") & (records["algorithm"] == "lanczos")],
        "Hessian eigenvalues of largest magnitude over the measured weights, by thick-restart Lanczos, ranked among "
        "those of their sign (hollow: negative).",
        lambda: plot_eigenvalues(records),
    )
    yield Plan(
        "spectral_density",
        records[measure == "spectral_density"],
        "Density of the Hessian's eigenvalues by stochastic Lanczos quadrature, smoothed by a Gaussian of 1 % of their "
        "range; bands are standard errors over probes. Six decades are shown.",
        lambda: plot_density(records),
    )
    yield Plan(
        "paths",
        records[measure == "path_loss"],
        "Loss between minima over all weights in which any two differ: on the straight line (dotted) and on a "
        "quadratic Bézier curve trained for low loss, at evenly spaced points; of at most ten pairs.",
        lambda: plot_paths(records),
    )
    yield Plan(
        "plane",
        records[measure.isin(["plane_loss", "plane_minimum", "plane_variance"])]
        if len(losses_of(records, "plane_loss"))
        else records.iloc[:0],
        "Loss over the plane of the first two principal components of the minima's weights; with more than three "
        "minima the marks are projections.",
        lambda: plot_plane(records),
    )
