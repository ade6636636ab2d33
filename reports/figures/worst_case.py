"""Worst-case loss rise against the radius of the ball."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.style import TWO_COLUMNS, mean_interval, method_order, method_style, plot_context

PANELS = {"full": "Full space", "lora": "LoRA subspace of the run"}


def plot_worst_case(records: pd.DataFrame, *, rho: float) -> Figure:
    """Two panels, full space and LoRA subspace: mean rise by method with 95 % intervals over seeds."""
    with plot_context():
        figure, axes = plt.subplots(1, 2, figsize=(TWO_COLUMNS, 3.3), sharey=True)
        for ax, (space, title) in zip(axes, PANELS.items(), strict=True):
            draw_rises(records, space=space, ax=ax)
            ax.axvline(rho, color="0.85", lw=4, zorder=0)
            ax.set_title(title)
        axes[0].set_ylabel("worst-case loss rise (nats)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def draw_rises(records: pd.DataFrame, *, space: str, ax: Axes) -> Axes:
    """One line a method on logarithmic axes."""
    rises = records[(records["measure"] == "worst_case_rise") & (records["subspace"] == space)]
    methods = method_order(rises["method"])
    for index, method in enumerate(methods):
        own = rises[rises["method"] == method].groupby("rho")["value"]
        summary = pd.DataFrame({rho: mean_interval(values) for rho, values in own}, index=["mean", "half"]).T
        style = method_style(method)
        # Moved apart by a few per cent, so that intervals of methods that agree stay visible.
        shifted = summary.index.to_numpy(dtype=float) * 1.03 ** (index - (len(methods) - 1) / 2)
        means, half = summary["mean"].to_numpy(), summary["half"].fillna(0).to_numpy()
        lower = np.minimum(half, 0.95 * means)  # an interval that reaches 0 has no end on a logarithmic axis
        ax.errorbar(
            shifted,
            means,
            yerr=np.stack([lower, half]),
            color=style.colour,
            marker=style.marker,
            ls=style.line,
            ms=7 if style.marker == "*" else 4,
            elinewidth=0.7,
            label=style.label,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    radii = sorted(rises["rho"].unique())
    ax.set_xticks(radii, [f"{rho:g}" for rho in radii])
    ax.minorticks_off()
    ax.set_xlabel("radius rho of the ball (norm of the weight change)")
    return ax
