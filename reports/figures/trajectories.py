"""The way to each minimum in its principal plane, over the loss."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.canvas import Canvas, panels
from reports.figures.surfaces import loss_grid
from reports.scales import loss_scale
from reports.style import method_order, method_style, plot_context
from reports.units import loss_unit

_COLUMNS = 4


def plot_trajectories(records: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """A panel a method, one colour scale; titles give the variance that the plane explains.

    Args:
        records: Long-form records with ``trajectory``, ``trajectory_loss`` and ``trajectory_variance`` rows.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    chosen = records[records["measure"].str.startswith("trajectory")]
    chosen = chosen[chosen["train_size"] == chosen["train_size"].min()]
    scale = loss_scale(chosen.loc[chosen["measure"] == "trajectory_loss", "value"])
    levels = scale.levels()
    finite = chosen[(chosen["measure"] == "trajectory_loss") & np.isfinite(chosen["value"].astype(float))]
    methods = method_order(finite["method"])
    with plot_context():
        canvas, axes = panels(len(methods), _COLUMNS, 1.6, canvas)
        for ax, method in zip(axes, methods, strict=True):
            own = chosen[chosen["method"] == method]
            grid = loss_grid(own[own["measure"] == "trajectory_loss"])
            filled = ax.contourf(
                grid.index,
                grid.columns,
                scale.cut(grid).T,
                levels=levels,
                norm=scale.norm(),
                cmap="viridis",
                extend="both",
            )
            way = own[own["measure"] == "trajectory"].sort_values("step")
            ax.plot(way["alpha"], way["beta"], color="white", marker=".", ms=3, lw=0.8)
            ax.plot(0, 0, color="white", marker="*", ms=7)
            shares = own.loc[own["measure"] == "trajectory_variance", "value"]
            ax.set_title(f"{method_style(method).drawn}\n{shares.sum():.0%} of the variance")
        canvas.colorbar(filled, ax=axes, label=f"training loss ({loss_unit()})", ticks=levels[::4], format="{x:.2g}")
        canvas.supxlabel("first principal component of the weights", fontsize=8)
        canvas.supylabel("second", fontsize=8)
    return canvas
