"""Share of the worst case that the adapters' spaces can see, over the radius and over the rank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analyses.records import is_rise
from reports.canvas import Canvas, grid, legend_below, legend_of, one_axes
from reports.figures.rows import draw_row, label_rows, readable
from reports.figures.sweeps import draw_curve, mark_swept, over_rank
from reports.style import (
    ONE_COLUMN,
    TWO_COLUMNS,
    MethodStyle,
    geometric_interval,
    method_order,
    method_style,
    plot_context,
)

RANDOM = MethodStyle("random space", "0.5", "x", ":")


def recovered_shares(records: pd.DataFrame) -> pd.DataFrame:
    """Rise inside the auxiliary's tangent space, and inside a random one, over that in the full ball.

    Returns:
        Records with the measure ``recovered_share``; none where the full rise is 0.
    """
    keys = ["method", "train_size", "seed", "rho"]
    rises = records[is_rise(records)]
    full = rises[rises["subspace"] == "full"].set_index(keys)["value"].rename("full")
    inside = rises[rises["subspace"].isin(["auxiliary", "random"])].join(full, on=keys)
    inside = inside[inside["full"] > 0]
    return inside.assign(measure="recovered_share", value=inside["value"] / inside["full"]).drop(columns="full")


def captured_over_rank(records: pd.DataFrame, *, rho: float) -> pd.DataFrame:
    """What `plot_capture` shows: shares by rank, with ``swept`` and ``curve``."""
    swept = over_rank(pd.concat([records, recovered_shares(records)], ignore_index=True))
    recovered = swept[(swept["measure"] == "recovered_share") & np.isclose(swept["rho"], rho)]
    shares = swept[swept["measure"].isin(["alignment_weighted", "alignment_expected", "alignment_optimum"])]
    shares = shares[(shares["subspace"] == "column") & (shares["layer"] == "all") & (shares["index"].fillna(1) > 0)]
    of_adapters = (shares["measure"] == "alignment_weighted") | (shares["component"] != "gradient")
    return pd.concat([shares[of_adapters], recovered])


def plot_capture(chosen: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """Left: share of the dominant curvature in column spaces over the rank. Right: recovered share of the rise.

    Args:
        chosen: What `captured_over_rank` returns.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    weighted, recovered = (chosen[chosen["measure"] == name] for name in ("alignment_weighted", "recovered_share"))
    with plot_context():
        canvas, ((left, right),) = grid(1, 2, (TWO_COLUMNS, 2.8), canvas, sharey=True)
        for curve in method_order(weighted["curve"]):
            own, style = weighted[weighted["curve"] == curve], method_style(curve)
            for other, line, marker in (("auxiliary", "--", "*"), ("primary", "-", "o"), ("gradient", ":", "^")):
                part = own[own["component"] == other]
                if len(part):
                    name = "gradient's top r" if other == "gradient" else other
                    marks = replace(style, line=line, marker=marker)
                    draw_curve(left, part, marks, label=f"{style.drawn}, {name}")
        for measure, label, line in (
            ("alignment_expected", "random space (expected)", "-"),
            ("alignment_optimum", "optimum of the rank", ":"),
        ):
            reference = chosen[chosen["measure"] == measure].groupby("swept")["value"].mean()
            left.plot(reference.index, reference, color="0.4", lw=1.0, ls=line, label=label)
        left.set_ylabel("captured share of curvature")
        left.set_ylim(0, 1.05)
        for curve in method_order(recovered["curve"]):
            own = recovered[recovered["curve"] == curve]
            style = replace(method_style(curve), line="--", marker="*")
            draw_curve(right, own[own["subspace"] == "auxiliary"], style, label="_of the left panel")
            draw_curve(right, own[own["subspace"] == "random"], RANDOM)
        right.set_ylabel("recovered share of the rise")
        right.yaxis.set_tick_params(labelleft=True)
        for ax in (left, right):
            mark_swept(ax, weighted["swept"], "rank")
        legend_below(canvas, [left, right], 3)
    return canvas


def _recovered_rows(shares: pd.DataFrame, ax: Axes | None) -> Axes:
    """A row a method: runs, geometric mean and interval; a bar for the random spaces' geometric mean."""
    methods = method_order(shares["method"])
    ax = one_axes(ax, (ONE_COLUMN, 0.9 + 0.25 * len(methods)))
    for place, method in enumerate(reversed(methods)):
        own = shares[(shares["method"] == method) & (shares["value"] > 0)]
        draw_row(ax, own.loc[own["subspace"] == "auxiliary", "value"], method, place)
        random = own.loc[own["subspace"] == "random", "value"]
        if len(random):
            ax.plot(geometric_interval(random)[0], place, marker="|", ms=11, color=RANDOM.colour, ls="none")
    ax.set_xlabel(f"recovered share of the rise at rho = {shares['rho'].iloc[0]:g}\n(bar: random space)")
    readable(ax)
    label_rows(ax, methods)
    return ax


def plot_recovered(shares: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Recovered share of the worst-case rise over the radius, by method, beside random spaces; rows for one radius.

    Args:
        shares: What `recovered_shares` returns.
        ax: Where to draw; default a new figure.
    """
    shares = shares.assign(swept=shares["rho"])
    with plot_context():
        if shares["rho"].nunique() == 1:
            return _recovered_rows(shares, ax)
        given, ax = ax, one_axes(ax, (ONE_COLUMN, 3.3))
        for method in method_order(shares["method"]):
            own, style = shares[shares["method"] == method], method_style(method)
            draw_curve(ax, own[own["subspace"] == "auxiliary"], style)
            random = own[own["subspace"] == "random"].groupby("swept")["value"].mean()
            ax.plot(random.index, random, color=style.colour, ls=RANDOM.line, lw=1.0)
        ax.plot([], [], color=RANDOM.colour, ls=RANDOM.line, lw=1.0, label=RANDOM.drawn)
        mark_swept(ax, shares["swept"], "radius rho of the ball")
        ax.set_ylim(0, 1.05)
        ax.set_ylabel("recovered share of the rise")
        legend_of(ax, given, 2)
    return ax
