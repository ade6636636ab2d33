"""Rise against fit over all settings that were tried, with the front of each method."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from analyses.records.front import flatter_at_equal_fit, on_front
from reports.canvas import Canvas, figure_of, grid, legend_below
from reports.style import TWO_COLUMNS, method_order, method_style, plot_context, save_figure


def plot_front(table: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """Worst-case rise against training and against validation loss; lines join the settings that nothing beats.

    Args:
        table: One row a method and setting, with ``rise``, ``train_loss`` and ``validation_loss``.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    with plot_context():
        canvas, (axes,) = grid(1, 2, (TWO_COLUMNS, 3.0), canvas, sharey=True)
        for ax, fit in zip(axes, ("train_loss", "validation_loss"), strict=True):
            whole = table.dropna(subset=["rise", fit])
            whole = whole[(whole["rise"] > 0) & (whole[fit] > 0)]
            for method in method_order(whole["method"]):
                own, style = whole[whole["method"] == method], method_style(method)
                marks = {"color": style.colour, "marker": style.marker, "ms": style.marker_size}
                ax.plot(own[fit], own["rise"], ls="", alpha=0.35, **marks)
                front = own[on_front(own[fit], own["rise"])].sort_values(fit)
                ax.plot(front[fit], front["rise"], ls=style.line, label=style.drawn, **marks)
            ax.set(xscale="log", yscale="log", xlabel=fit.replace("_", " "))
        axes[0].set_ylabel("worst-case rise")
        legend_below(canvas, [axes[0]], 4)
    return canvas


def write_front(table: pd.DataFrame, folder: Path) -> Path:
    """Draw `plot_front` into a folder as PDF and PNG; the PNG's path."""
    figure = figure_of(plot_front(table))
    path = save_figure(figure, folder, "front")
    plt.close(figure)
    return path


def front_lines(table: pd.DataFrame, reference: str = "lora") -> list[str]:
    """Of every method, how many settings are flatter than all of LoRA's that fit as well; in words."""
    lines = []
    for method in method_order(set(table["method"]) - {reference}):
        tried = int((table["method"] == method).sum())
        for fit in ("train_loss", "validation_loss"):
            found = flatter_at_equal_fit(table, method, reference, fit=fit)
            best = f", at best {found['ratio'].min():.2f} ×" if len(found) else ""
            lines.append(
                f"{method}: {len(found)} of {tried} settings are flatter than every setting of {reference} with a "
                f"{fit.replace('_', ' ')} at most theirs{best}"
            )
    return lines
