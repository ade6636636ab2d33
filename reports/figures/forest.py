"""Every method against LoRA, seed by seed: rise, fit and generalisation as ratios."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from analyses.records import is_rise
from reports.style import TWO_COLUMNS, mean_interval, method_order, method_style, plot_context

REFERENCE = "lora"
PANELS = {"worst_case_rise": "worst-case rise", "train_loss": "training loss", "test_loss": "test loss"}
PREFIX = "log_ratio_to_lora_of_"


def log_ratios(records: pd.DataFrame, *, rho: float) -> pd.DataFrame:
    """Natural logarithms of each run's rise at rho, training and test loss over LoRA's at the same seed.

    Returns:
        Records with the measures ``log_ratio_to_lora_of_…``; none where a value is not above 0, or without LoRA.
    """
    chosen = records[is_rise(records, "full", rho) | records["measure"].isin(["train_loss", "test_loss"])]
    chosen = chosen[chosen["value"] > 0]
    keys = ["measure", "train_size", "seed"]
    reference = chosen[chosen["method"] == REFERENCE].set_index(keys)["value"].rename("reference")
    paired = chosen[chosen["method"] != REFERENCE].join(reference[~reference.index.duplicated()], on=keys, how="inner")
    ratios = np.log(paired["value"].astype(float) / paired["reference"].astype(float))
    return paired.assign(value=ratios, measure=PREFIX + paired["measure"]).drop(columns="reference")


def plot_forest(ratios: pd.DataFrame) -> Figure:
    """A row a method, a panel a measure: dots are seeds, marks geometric means with 95 % intervals of the log ratios.

    Args:
        ratios: What `log_ratios` returns.
    """
    methods = method_order(ratios["method"])[::-1]
    with plot_context():
        figure, axes = plt.subplots(
            1, len(PANELS), figsize=(TWO_COLUMNS, 0.9 + 0.21 * len(methods)), sharey=True, squeeze=False
        )
        for ax, (measure, title) in zip(axes[0], PANELS.items(), strict=True):
            own = ratios[ratios["measure"] == PREFIX + measure]
            for place, method in enumerate(methods):
                _row(ax, own.loc[own["method"] == method, "value"].astype(float), method, place)
            ax.axvline(1, color="0.6", lw=0.7, zorder=0)
            ax.set_xscale("log")
            ax.set_xlabel(f"{title} over LoRA's")
            _readable(ax)
        axes[0, 0].set_yticks(range(len(methods)), [method_style(method).label for method in methods])
    return figure


def _row(ax: Axes, logs: pd.Series, method: str, place: int) -> None:
    style = method_style(method)
    mean, half = mean_interval(logs)
    ax.scatter(np.exp(logs), np.full(len(logs), place), s=7, color=style.colour, alpha=0.35, lw=0)
    if np.isfinite(half):
        ax.plot(np.exp([mean - half, mean + half]), [place, place], color=style.colour, lw=1.4)
    ax.plot(np.exp(mean), place, color=style.colour, marker=style.marker, ms=style.marker_size + 0.5)


def _readable(ax: Axes) -> None:
    """Round numbers as ticks, few enough for a narrow panel and at least two."""
    low, high = ax.get_xlim()
    decades = np.log10(high / low)
    if decades < 0.5:
        ax.xaxis.set_major_locator(FixedLocator([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75]))
    else:
        steps = (1.0, 2.0, 5.0) if decades < 1.5 else (1.0, 3.0) if decades < 2.5 else (1.0,)
        ax.xaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
