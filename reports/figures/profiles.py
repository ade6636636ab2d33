"""Loss along lines through the minima."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.canvas import Canvas, grid, legend_below
from reports.scales import loss_scale
from reports.style import TWO_COLUMNS, method_order, method_style, plot_context
from reports.units import loss_unit

_TELLING = 0.1


def plot_profiles(records: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """One panel a direction, one line a method, on one scale: the loss against the distance from the minimum.

    Directions along which no loss changes by a tenth are left out, unless none does.

    Args:
        records: Long-form records with ``loss_profile`` rows.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    profiles = records[records["measure"] == "loss_profile"]
    profiles = profiles[np.isfinite(profiles["value"].astype(float))]
    scale = loss_scale(profiles["value"])
    if scale.logarithmic:
        profiles = profiles[profiles["value"] > 0]
    losses = profiles.groupby(["subspace", "method"])["value"]
    change = (losses.max() - losses.min()) / losses.min().abs()
    largest = change.groupby(level="subspace").max()
    telling = set(largest.index[largest > _TELLING])
    directions = [one for one in dict.fromkeys(profiles["subspace"]) if one in telling or not telling]
    with plot_context():
        canvas, axes = grid(1, len(directions), (TWO_COLUMNS, 2.7), canvas, sharex=True, sharey=True)
        for ax, direction in zip(axes[0], directions, strict=True):
            for method in method_order(profiles["method"]):
                own = profiles[(profiles["method"] == method) & (profiles["subspace"] == direction)].sort_values(
                    "alpha"
                )
                style = method_style(method)
                ax.plot(own["alpha"], own["value"], color=style.colour, ls=style.line, label=style.drawn)
            ax.set_title(direction)
            ax.set_yscale("log" if scale.logarithmic else "linear")
            ax.set_xlabel("distance from minimum")
        axes[0, 0].set_ylabel(f"training loss ({loss_unit()})")
        legend_below(canvas, [axes[0, 0]], 5)
    return canvas
