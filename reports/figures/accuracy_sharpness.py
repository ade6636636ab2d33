"""Test accuracy against worst-case loss rise."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analyses.records import is_rise
from reports.canvas import Canvas, grid, legend_below, panels
from reports.figures.rows import readable
from reports.style import ONE_COLUMN, geometric_interval, method_order, method_style, plot_context
from reports.units import loss_unit


def plot_accuracy_sharpness(records: pd.DataFrame, *, rho: float, canvas: Canvas | None = None) -> Canvas:
    """One faint point a run and a large mark for each method, at the geometric mean of its rises; a panel a size.

    Args:
        records: Long-form records.
        rho: Radius of the rise.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    runs = accurate_and_flat(records, rho=rho)
    sizes = sorted(runs["train_size"].unique())
    with plot_context():
        if len(sizes) == 1:
            canvas, (axes,) = grid(1, 1, (ONE_COLUMN, 3.6), canvas)
        else:
            canvas, axes = panels(len(sizes), min(3, len(sizes)), 2.2, canvas, sharex=True)
        for ax, size in zip(axes, sizes, strict=True):
            _draw_size(ax, runs[runs["train_size"] == size])
            readable(ax)
            if len(sizes) > 1:
                ax.set_title(f"{size} training examples")
            ax.set_ylabel("test accuracy (%)")
            ax.tick_params(labelbottom=True)
            ax.set_xlabel(f"worst-case rise at rho = {rho:g}\n({loss_unit()})")
        legend_below(canvas, axes, 2 if len(sizes) == 1 else 5)
    return canvas


def accurate_and_flat(records: pd.DataFrame, *, rho: float) -> pd.DataFrame:
    """A row a run with a rise above 0: ``method``, ``train_size``, ``seed``, ``rise`` and ``accuracy``."""
    rises = records[is_rise(records, "full", rho)]
    keys = ["method", "train_size", "seed"]
    accuracy = records[records["measure"] == "test_accuracy"].set_index(keys)["value"].rename("accuracy")
    runs = rises.set_index(keys)["value"].rename("rise").to_frame().join(accuracy, how="inner").reset_index()
    return runs[(runs["rise"] > 0) & np.isfinite(runs["rise"].astype(float))]


def _draw_size(ax: Axes, runs: pd.DataFrame) -> None:
    for method in method_order(runs["method"]):
        own, style = runs[runs["method"] == method], method_style(method)
        percent = 100 * own["accuracy"]
        area = style.marker_size**2
        ax.scatter(own["rise"], percent, color=style.colour, marker=style.marker, s=area, alpha=0.35, lw=0)
        ax.scatter(
            geometric_interval(own["rise"])[0],
            percent.mean(),
            color=style.colour,
            marker=style.marker,
            s=3 * area,
            edgecolor="white" if style.marker in Line2D.filled_markers else None,
            lw=0.6,
            label=style.drawn,
            zorder=3,
        )
