"""Top Hessian eigenvalues by method."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analyses.records.derive import eigenvalues_by_sign
from reports.canvas import legend_of, one_axes
from reports.figures.rows import rounded
from reports.style import ONE_COLUMN, geometric_interval, method_order, method_style, plot_context


def plot_eigenvalues(records: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Geometric means of the largest eigenvalues' sizes (Lanczos) with 95 % intervals; negative ones are hollow.

    Args:
        records: Long-form records with ``hessian_eigenvalue`` rows.
        ax: Where to draw; default a new figure.
    """
    chosen = eigenvalues_by_sign(records)
    methods = method_order(chosen["method"])
    with plot_context():
        given, ax = ax, one_axes(ax, (ONE_COLUMN, 3.0 + 0.08 * len(methods)))
        apart = min(0.07, 0.8 / max(1, len(methods)))  # marks of one rank stay nearer to each other than to the next
        for index, method in enumerate(methods):
            style = method_style(method)
            for sign in ("positive", "negative"):
                own = chosen[(chosen["method"] == method) & (chosen["component"] == sign)]
                groups = own.groupby("index")["value"]
                positions = np.array([k for k, _ in groups], dtype=float) + apart * (index - (len(methods) - 1) / 2)
                sizes = [values.abs()[values != 0] for _, values in groups]
                summary = np.array([geometric_interval(values) for values in sizes]).reshape(-1, 3)
                ax.errorbar(
                    positions,
                    summary[:, 0],
                    yerr=np.nan_to_num(np.abs(summary[:, 1:].T - summary[:, 0])),
                    color=style.colour,
                    marker=style.marker,
                    mfc=style.colour if sign == "positive" else "white",
                    ms=style.marker_size,
                    ls="none",
                    elinewidth=0.7,
                    label=style.drawn if sign == "positive" else None,
                )
        ranks = sorted(int(rank) for rank in chosen["index"].unique())
        ax.set_xticks(ranks)
        if ranks:
            ax.set_xlim(ranks[0] - 0.6, ranks[-1] + 0.6)
        ax.set_yscale("log")
        ax.set_xlabel("rank of the eigenvalue among those of its sign")
        rounded(ax.yaxis)
        ax.set_ylabel("size of Hessian eigenvalue")
        legend_of(ax, given, 2)
    return ax
