"""Every method against LoRA, seed by seed: rise, fit and generalisation as ratios."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from analyses.records import is_rise
from analyses.records.seeds import seed_means
from reports.canvas import Canvas, grid
from reports.figures.rows import draw_row, label_rows, readable
from reports.style import TWO_COLUMNS, method_order, plot_context

REFERENCE = "lora"
PANELS = {"worst_case_rise": "worst-case rise", "train_loss": "training loss", "test_loss": "test loss"}
PREFIX = "log_ratio_to_lora_of_"


def log_ratios(records: pd.DataFrame, *, rho: float) -> pd.DataFrame:
    """Natural logarithms of each run's rise at rho, training and test loss over LoRA's at the same seed.

    Returns:
        Records with the measures ``log_ratio_to_lora_of_…``; none where a value is not above 0, or without LoRA.
    """
    chosen = records[is_rise(records, "full", rho) | records["measure"].isin(["train_loss", "test_loss"])]
    chosen = chosen[(chosen["value"] > 0) & np.isfinite(chosen["value"].astype(float))]
    keys = ["measure", "train_size", "seed"]
    reference = chosen[chosen["method"] == REFERENCE].set_index(keys)["value"].rename("reference")
    paired = chosen[chosen["method"] != REFERENCE].join(reference[~reference.index.duplicated()], on=keys, how="inner")
    ratios = np.log(paired["value"].astype(float) / paired["reference"].astype(float))
    return paired.assign(value=ratios, measure=PREFIX + paired["measure"]).drop(columns="reference")


def plot_forest(ratios: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """A row a method, a panel a measure: dots are seeds, marks geometric means with 95 % intervals of the log ratios.

    Args:
        ratios: What `log_ratios` returns.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    methods = method_order(ratios["method"])[::-1]
    with plot_context():
        size = (TWO_COLUMNS, 0.9 + 0.21 * len(methods))
        canvas, axes = grid(1, len(PANELS), size, canvas, sharey=True)
        for ax, (measure, title) in zip(axes[0], PANELS.items(), strict=True):
            own = ratios[ratios["measure"] == PREFIX + measure]
            for place, method in enumerate(methods):
                of_method = own[own["method"] == method]
                means = seed_means(of_method).map(math.exp)  # a seed counts once, whatever the number of sizes
                ratios_of = of_method["value"].astype(float).map(math.exp)
                draw_row(ax, ratios_of, method, place, means=means)
            ax.axvline(1, color="0.6", lw=0.7, zorder=0)
            ax.set_xlabel(f"{title} over LoRA's")
            readable(ax)
        label_rows(axes[0, 0], methods[::-1])
    return canvas
