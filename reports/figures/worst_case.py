"""Worst-case loss rise against the radius of the ball."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.records import is_rise
from reports.style import TWO_COLUMNS, mean_interval, method_order, method_style, plot_context

PANELS = {"full": "Full space", "lora": "LoRA subspace of the run"}
REFERENCE = "lora"


def plot_worst_case(records: pd.DataFrame, *, rho: float) -> Figure:
    """Mean rise by method with 95 % intervals over seeds, and below it the rise over LoRA's at the same seed.

    The rise grows by decades with the radius, so methods can be told apart only in the second row; it is missing
    where the records have no LoRA runs.

    Args:
        records: Long-form records.
        rho: Radius to mark.

    Returns:
        A figure with a column for the full space and one for the LoRA subspace.
    """
    rises = with_ratios(records)
    rows = {"value": "worst-case loss rise (nats)"}
    if rises["ratio"].notna().any():
        rows["ratio"] = f"rise over {method_style(REFERENCE).label}'s, same seed"
    with plot_context():
        figure, axes = plt.subplots(
            len(rows), 2, figsize=(TWO_COLUMNS, 0.9 + 2.4 * len(rows)), sharex=True, sharey="row", squeeze=False
        )
        for row, (column, label) in zip(axes, rows.items(), strict=True):
            for ax, space in zip(row, PANELS, strict=True):
                draw_rises(rises[rises["subspace"] == space], column=column, ax=ax)
                ax.axvline(rho, color="0.85", lw=4, zorder=0)
            row[0].set_ylabel(label)
            _logarithmic(row, rises[column].dropna())
        radii = sorted(rises["rho"].unique())  # the panels share an axis, but not all radii
        axes[0, 0].set_xticks(radii, [f"{radius:g}" for radius in radii])
        for ax in axes.flat:
            ax.minorticks_off()
        for top, bottom, title in zip(axes[0], axes[-1], PANELS.values(), strict=True):
            top.set_title(title)
            bottom.set_xlabel("radius rho of the ball (norm of the weight change)")
        entries = {
            label: handle for ax in axes[0] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=5)
    return figure


def draw_rises(rises: pd.DataFrame, *, column: str, ax: Axes) -> Axes:
    """One line a method over a logarithmic radius."""
    methods = method_order(rises["method"])
    for index, method in enumerate(methods):
        own = rises[rises["method"] == method].groupby("rho")[column]
        summary = pd.DataFrame({rho: mean_interval(values) for rho, values in own}, index=["mean", "half"]).T
        style = method_style(method)
        # Moved apart by a few per cent, so that intervals of methods that agree stay visible.
        shifted = summary.index.to_numpy(dtype=float) * 1.03 ** (index - (len(methods) - 1) / 2)
        means, half = summary["mean"].to_numpy(), summary["half"].fillna(0).to_numpy()
        # An interval that reaches 0 has no end on a logarithmic axis.
        lower = np.where(means > 0, np.minimum(half, 0.95 * means), half)
        ax.errorbar(
            shifted,
            means,
            yerr=np.stack([lower, half]),
            color=style.colour,
            marker=style.marker,
            ls=style.line,
            ms=style.marker_size,
            elinewidth=0.7,
            label=style.label,
        )
    ax.set_xscale("log")
    return ax


def with_ratios(records: pd.DataFrame) -> pd.DataFrame:
    """Rises, with the rise over the reference's at the same seed, space and radius; undefined where that is 0."""
    rises = records[is_rise(records) & records["subspace"].isin(list(PANELS))]
    keys = ["train_size", "seed", "subspace", "rho"]
    reference = rises.loc[rises["method"] == REFERENCE, [*keys, "value"]].rename(columns={"value": "reference"})
    joined = rises.merge(reference, on=keys, how="left")
    joined["ratio"] = joined["value"] / joined["reference"].where(joined["reference"] > 0)
    return joined


def _logarithmic(axes: np.ndarray, values: pd.Series) -> None:
    """Logarithmic in y; linear close to 0 if there are rises of 0, which a logarithmic axis would drop."""
    positive = values[values > 0]
    for ax in axes:
        if len(positive) and not (values <= 0).any():
            ax.set_yscale("log")
        else:
            ax.set_yscale("symlog", linthresh=positive.min() if len(positive) else 1.0)
        ax.minorticks_off()
