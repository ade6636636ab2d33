"""Accuracy and sharpness over the size of the training set or the rank of the adapters."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from analyses.records import is_rise
from reports.canvas import Canvas, grid, legend_below
from reports.figures.rows import rounded
from reports.ranges import cut, possible
from reports.style import (
    TWO_COLUMNS,
    MethodStyle,
    geometric_interval,
    mean_interval,
    method_order,
    method_style,
    plot_context,
)
from reports.units import loss_unit

RANK = "adapter_rank"
"""Measure of the rank of a run's adapter."""


def over_train_size(records: pd.DataFrame) -> pd.DataFrame:
    """Records with the column ``swept``, the number of training examples."""
    return records.assign(swept=records["train_size"], curve=records["method"])


def over_rank(records: pd.DataFrame) -> pd.DataFrame:
    """Records of the adapters with ``swept``, the rank; variants ``lora_r1``, ``lora_r2`` … make one curve."""
    ranks = records[records["measure"] == RANK].groupby("method")["value"].first()
    chosen = records[records["method"].isin(ranks.index)]
    curve = chosen["method"].str.replace(r"_r\d+$", "", regex=True)
    return chosen.assign(swept=chosen["method"].map(ranks), curve=curve)


def plot_sweep(swept: pd.DataFrame, *, rho: float, xlabel: str, canvas: Canvas | None = None) -> Canvas:
    """Left: test accuracy. Right: worst-case rise at rho in the full space. A line a method, bars over seeds.

    Args:
        swept: Records with columns ``swept`` (horizontal axis) and ``curve``.
        rho: Radius of the rise.
        xlabel: Name of what is swept.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    panels = [
        (swept[swept["measure"] == "test_accuracy"], 100.0, "test accuracy (%)", "linear"),
        (swept[is_rise(swept, "full", rho)], 1.0, f"worst-case rise at rho = {rho:g}\n({loss_unit()})", "log"),
    ]
    panels = [panel for panel in panels if len(panel[0])]  # a regression has no accuracy
    with plot_context():
        canvas, (axes,) = grid(1, len(panels), (TWO_COLUMNS, 2.7), canvas)
        for ax, (chosen, scale, label, yscale) in zip(axes, panels, strict=True):
            for curve in method_order(chosen["curve"]):
                own = chosen[chosen["curve"] == curve]
                draw_curve(ax, own, method_style(curve), logarithmic=yscale == "log", scale=scale)
            ax.set_yscale(yscale)
            if yscale == "log":
                rounded(ax.yaxis)
            mark_swept(ax, chosen["swept"], xlabel)
            ax.set_ylabel(label)
        legend_below(canvas, axes, 4)
    return canvas


def draw_curve(
    ax: Axes,
    own: pd.DataFrame,
    style: MethodStyle,
    *,
    label: str | None = None,
    logarithmic: bool = False,
    scale: float = 1.0,
) -> None:
    """Mean of a measure over ``swept``, bars over seeds as far as values are possible.

    On a logarithmic axis, where all is above 0, geometric.
    """
    at = sorted(float(x) for x in own["swept"].unique())
    groups = [scale * own.loc[own["swept"] == x, "value"] for x in at]
    if logarithmic and all((values > 0).all() for values in groups):
        summary = np.array([geometric_interval(values) for values in groups])
        centre, ends = summary[:, 0], summary[:, 1:].T
    else:
        summary = np.array([mean_interval(values) for values in groups])
        centre, ends = summary[:, 0], summary[:, 0] + np.outer([-1, 1], summary[:, 1])
    ends = cut(ends, scale * np.asarray(possible(own["measure"].iloc[0])))
    ax.errorbar(
        at,
        centre,
        yerr=np.nan_to_num(np.abs(ends - centre)),
        color=style.colour,
        marker=style.marker,
        ms=style.marker_size,
        ls=style.line,
        elinewidth=0.7,
        label=label or style.drawn,
    )


def mark_swept(ax: Axes, swept: pd.Series, xlabel: str) -> None:
    """A logarithmic axis with a tick at every value that was swept."""
    ax.set_xscale("log")
    ticks = sorted(float(x) for x in swept.unique())
    ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(xlabel)
