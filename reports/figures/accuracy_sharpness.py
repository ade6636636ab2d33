"""Test accuracy against worst-case loss rise."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses.records import is_rise
from reports.style import ONE_COLUMN, method_order, method_style, plot_context


def plot_accuracy_sharpness(records: pd.DataFrame, *, rho: float) -> Figure:
    """One faint point a run and a large mark for each method's mean."""
    rises = records[is_rise(records, "full", rho)]
    keys = ["method", "train_size", "seed"]
    accuracy = records[records["measure"] == "test_accuracy"].set_index(keys)["value"].rename("accuracy")
    runs = rises.set_index(keys)["value"].rename("rise").to_frame().join(accuracy, how="inner").reset_index()
    with plot_context():
        figure, ax = plt.subplots(figsize=(ONE_COLUMN, 3.6))
        for method in method_order(runs["method"]):
            own, style = runs[runs["method"] == method], method_style(method)
            percent = 100 * own["accuracy"]
            area = style.marker_size**2
            ax.scatter(own["rise"], percent, color=style.colour, marker=style.marker, s=area, alpha=0.35, lw=0)
            ax.scatter(
                own["rise"].mean(),
                percent.mean(),
                color=style.colour,
                marker=style.marker,
                s=3 * area,
                edgecolor="white" if style.marker in Line2D.filled_markers else None,
                lw=0.6,
                label=style.label,
                zorder=3,
            )
        ax.set_xlabel(f"worst-case loss rise at rho = {rho:g} (nats)")
        ax.set_ylabel("test accuracy (%)")
        figure.legend(loc="outside lower center", ncols=2)
    return figure
