"""How many examples carry a worst case, and how hard it was to find."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.canvas import Canvas, grid
from reports.figures.rows import draw_row, label_rows, readable
from reports.ranges import possible
from reports.style import TWO_COLUMNS, method_order, method_style, plot_context

CARRIERS = {"effective_examples": "effective number of examples", "largest_share": "share of the largest example"}


def carried(records: pd.DataFrame, *, rho: float) -> pd.DataFrame:
    """The records that `plot_carriers` draws: of the l2 ball of radius rho over the whole space."""
    here = records[records["measure"].isin(list(CARRIERS)) & (records["subspace"] == "full")]
    here = here[(here["ball"].fillna("l2") == "l2") & np.isclose(here["rho"].astype(float), rho)]
    return here[(here["measure"] != "largest_share") | (here["index"] == 1).fillna(False)]


def plot_carriers(chosen: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """A row a method: the participation ratio of the examples' parts in the worst case, and the largest part.

    Args:
        chosen: What `carried` returns.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    methods = method_order(chosen["method"])
    with plot_context():
        size = (TWO_COLUMNS, 0.9 + 0.21 * len(methods))
        canvas, (axes,) = grid(1, len(CARRIERS), size, canvas, sharey=True)
        for ax, (measure, words) in zip(axes, CARRIERS.items(), strict=True):
            own = chosen[chosen["measure"] == measure]
            for place, method in enumerate(reversed(methods)):
                draw_row(ax, own.loc[own["method"] == method, "value"], method, place, within=possible(measure))
            ax.set_xlabel(words)
            readable(ax)
        label_rows(axes[0], methods)
    return canvas


def searches(records: pd.DataFrame) -> pd.DataFrame:
    """The records that `plot_searches` draws: the gap of every pair of searches over the whole space."""
    return records[(records["measure"] == "worst_case_gap") & (records["subspace"] == "full")]


def passes_of(records: pd.DataFrame) -> pd.DataFrame:
    """Records with the measure ``passes_of_both_searches``, in the same balls."""
    rises = records[(records["measure"] == "worst_case_rise") & (records["subspace"] == "full")]
    return rises.assign(measure="passes_of_both_searches", value=rises["num_passes"]).dropna(subset="value")


def plot_searches(gaps: pd.DataFrame, records: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """A row a method: the gap between the two searches of every ball, and the passes that both took.

    Args:
        gaps: What `searches` returns.
        records: With the rises, which hold the passes.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    keys = ["method", "train_size", "seed", "ball", "rho", "subspace"]
    rises = records[records["measure"] == "worst_case_rise"].drop_duplicates(keys).set_index(keys)["num_passes"]
    points = gaps.join(rises.rename("passes"), on=keys).dropna(subset=["passes"])
    points = points.assign(percent=100 * points["value"].astype(float), passes=points["passes"].astype(float))
    methods = method_order(points["method"])
    with plot_context():
        size = (TWO_COLUMNS, 0.9 + 0.21 * len(methods))
        canvas, (axes,) = grid(1, 2, size, canvas, sharey=True)
        for ax, column in zip(axes, ("percent", "passes"), strict=True):
            for place, method in enumerate(reversed(methods)):
                values = points.loc[points["method"] == method, column]
                ax.scatter(values, np.full(len(values), place), s=9, color=method_style(method).colour, alpha=0.5, lw=0)
        axes[0].axvline(5, color="0.7", lw=0.8, zorder=0)
        axes[0].set_xscale("symlog", linthresh=0.1)
        axes[0].set_xticks([0, 0.1, 1, 5, 20], ["0", "0.1", "1", "5", "20"])
        axes[0].minorticks_off()
        axes[0].set_xlim(0, 1.3 * points["percent"].max() if points["percent"].max() > 5 else 6.5)
        axes[0].set_xlabel("gap of the two searches (% of the rise)")
        axes[1].set_xlabel("passes over the data of both")
        axes[1].set_xlim(left=0)
        label_rows(axes[0], methods)
    return canvas
