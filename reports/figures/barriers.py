"""Loss barriers between the minima of different methods."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.canvas import one_axes
from reports.style import ONE_COLUMN, method_order, method_style, plot_context
from reports.units import loss_unit


def plot_barriers(records: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Matrix of barriers on the straight lines between minima.

    Args:
        records: Long-form records with ``loss_barrier`` rows.
        ax: Where to draw; default a new figure.
    """
    barriers = records[records["measure"] == "loss_barrier"]
    barriers = barriers[barriers["train_size"] == barriers["train_size"].min()]
    methods = method_order([*barriers["method"], *barriers["other"]])
    matrix = np.full((len(methods), len(methods)), np.nan)
    for a, b, value in zip(barriers["method"], barriers["other"], barriers["value"], strict=True):
        i, j = sorted((methods.index(a), methods.index(b)), reverse=True)
        matrix[i, j] = value
    labels = [method_style(method).drawn for method in methods]
    with plot_context():
        ax = one_axes(ax, (ONE_COLUMN, 3.1))
        image = ax.imshow(1e3 * matrix[1:, :-1], cmap="viridis", vmin=0)
        top = np.nanmax(matrix)
        for i in range(1, len(methods)):
            for j in range(i):
                colour = "black" if matrix[i, j] > 0.6 * top else "white"
                ax.text(j, i - 1, f"{1e3 * matrix[i, j]:.2g}", ha="center", va="center", fontsize=6, color=colour)
        ax.set_xticks(range(len(methods) - 1), labels[:-1], rotation=45, ha="right")
        ax.set_yticks(range(len(methods) - 1), labels[1:])
        ax.figure.colorbar(image, ax=ax, label=f"barrier (thousandths of {loss_unit()})", shrink=0.8)
    return ax
