"""Loss surfaces around the minima of all methods, on one scale."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from reports.canvas import Canvas, panels
from reports.scales import LossScale, loss_scale
from reports.style import TWO_COLUMNS, method_order, method_style, plot_context
from reports.units import loss_unit

_COLUMNS = 5
_ACROSS = "weight change inside the LoRA subspace"
_UP = "weight change outside it"


def plot_contours(records: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """Filled contours of the loss, a panel a method; colours mean the same loss in all of them.

    Args:
        records: Long-form records with ``loss_surface`` rows.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    grids = loss_grids(records)
    scale = scale_of(grids)
    levels = scale.levels()
    with plot_context():
        canvas, axes = panels(len(grids), _COLUMNS, 1.25, canvas, sharex=True, sharey=True)
        for ax, (method, grid) in zip(axes, grids.items(), strict=True):
            filled = ax.contourf(
                grid.index,
                grid.columns,
                scale.cut(grid).T,
                levels=levels,
                norm=scale.norm(),
                cmap="viridis",
                extend="both",
            )
            ax.plot(0, 0, marker="+", color="white")
            ax.set_title(method_style(method).drawn.replace(" (", "\n("))
            ax.set_aspect("equal")
        canvas.colorbar(filled, ax=axes, label=f"training loss ({loss_unit()})", ticks=levels[::4], format="{x:.2g}")
        canvas.supxlabel(_ACROSS, fontsize=8)
        canvas.supylabel(_UP, fontsize=8)
    return canvas


def plot_surfaces(records: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """The same surfaces in three dimensions, for at most four methods; one height and colour scale.

    Args:
        records: Long-form records with ``loss_surface`` rows.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    grids = loss_grids(records)
    telling = [method for method in ("sam", "lora", "lora_sam", "bilora") if method in grids] or list(grids)[:4]
    scale = scale_of({method: grids[method] for method in telling})
    low, high = scale.heights([scale.low, scale.high])
    with plot_context():
        canvas = plt.figure(figsize=(TWO_COLUMNS, 2.1)) if canvas is None else canvas
        for number, method in enumerate(telling, 1):
            ax = canvas.add_subplot(1, len(telling), number, projection="3d")
            grid = grids[method]
            alphas, betas = np.meshgrid(grid.index, grid.columns, indexing="ij")
            heights = scale.heights(grid.to_numpy())
            ax.plot_surface(alphas, betas, heights, cmap="viridis", vmin=low, vmax=high, lw=0)
            ax.set_zlim(low, high if high > low else low + 1)
            ax.set_title(method_style(method).drawn)
            ax.set_xlabel("inside LoRA", labelpad=-8)
            ax.set_ylabel("outside", labelpad=-8)
            ax.tick_params(labelsize=5, pad=-3)
            ax.set_box_aspect(None, zoom=0.9)
        canvas.text(0.5, 0.02, f"height: {scale.words} ({loss_unit()})", ha="center", fontsize=7)
    return canvas


def loss_grids(records: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Loss by method: rows alpha, columns beta."""
    surfaces = records[records["measure"] == "loss_surface"]
    first = surfaces[surfaces["train_size"] == surfaces["train_size"].min()]
    return {
        method: loss_grid(own)
        for method in method_order(first["method"])
        if np.isfinite((own := first[first["method"] == method])["value"].astype(float)).any()
    }


def loss_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """Losses by alpha and beta; those that are not finite keep their places."""
    return rows.pivot_table(index="alpha", columns="beta", values="value", dropna=False)


def scale_of(grids: dict[str, pd.DataFrame]) -> LossScale:
    """One scale for all grids."""
    return loss_scale(np.concatenate([grid.to_numpy().ravel() for grid in grids.values()]))
