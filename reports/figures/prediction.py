"""How far the quadratic model predicts the worst case."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyses.records import is_rise
from reports.canvas import Canvas, grid
from reports.figures.rows import draw_row, label_rows, readable
from reports.style import TWO_COLUMNS, method_order, plot_context

_MOST = 4
"""Radii shown: the smallest, the largest and some between."""


def predictions(records: pd.DataFrame) -> pd.DataFrame:
    """Records with the measure ``found_over_predicted``: the rise over the quadratic model's, both above 0."""
    keys = ["method", "seed", "train_size", "rho"]
    model = records[records["measure"] == "quadratic_rise"].drop_duplicates(keys).set_index(keys)["value"]
    found = records[is_rise(records, "full")]
    found = found.join(model.rename("model"), on=keys)
    found = found[(found["model"] > 0) & (found["value"] > 0) & np.isfinite(found["value"].astype(float))]
    ratios = found["value"] / found["model"]
    return found.assign(measure="found_over_predicted", value=ratios).drop(columns="model")


def plot_prediction(records: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """Rise found by the searches over the rise that the quadratic model predicts: a panel a radius, a row a method.

    Args:
        records: Long-form records with ``quadratic_rise`` and ``worst_case_rise`` rows.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    ratios = predictions(records)
    radii = sorted(ratios["rho"].unique())
    if len(radii) > _MOST:
        radii = [radii[round(place * (len(radii) - 1) / (_MOST - 1))] for place in range(_MOST)]
    methods = method_order(ratios["method"])
    with plot_context():
        size = (TWO_COLUMNS, 0.9 + 0.21 * len(methods))
        canvas, axes = grid(1, len(radii), size, canvas, sharey=True, sharex=True)
        for ax, rho in zip(axes[0], radii, strict=True):
            own = ratios[ratios["rho"] == rho]
            for place, method in enumerate(reversed(methods)):
                draw_row(ax, own.loc[own["method"] == method, "value"], method, place)
            ax.axvline(1, color="0.8", lw=3, zorder=0)
            ax.set_title(f"rho = {rho:g}")
            readable(ax)
        label_rows(axes[0, 0], methods)
        canvas.supxlabel("rise found / rise of the quadratic model", fontsize=8)
    return canvas
