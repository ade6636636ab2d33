"""Worst-case loss rise by method: at one radius a row a method, over several a panel a method."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from analyses.records import is_rise
from reports.canvas import Canvas, grid, panels
from reports.figures.rows import draw_row, label_rows, readable, rounded
from reports.style import TWO_COLUMNS, geometric_interval, method_order, method_style, plot_context
from reports.units import loss_unit

PANELS = {"full": "full space", "lora": "LoRA subspace of the run"}
REFERENCE = "lora"
_COLUMNS = 4
_GREY = "0.65"


def plot_worst_case(records: pd.DataFrame, *, rho: float, canvas: Canvas | None = None) -> Canvas:
    """Rises in the full space and inside the run's LoRA subspace, where it was searched.

    Args:
        records: Long-form records.
        rho: Radius to mark.
        canvas: Figure or subfigure to draw in; default a new figure.

    Returns:
        With one radius, a panel a space with a row a method; with more, a panel a method, in which LoRA's curve in the
        full space is dotted.
    """
    rises = with_ratios(records)
    with plot_context():
        return _rows(rises, canvas) if rises["rho"].nunique() == 1 else _curves(rises, rho, canvas)


def _rows(rises: pd.DataFrame, canvas: Canvas | None) -> Canvas:
    spaces = [space for space in PANELS if (rises["subspace"] == space).any()]
    methods = method_order(rises["method"])
    size = (TWO_COLUMNS, 0.9 + 0.21 * len(methods))
    canvas, axes = grid(1, len(spaces), size, canvas, sharey=True)
    for ax, space in zip(axes[0], spaces, strict=True):
        own = rises[rises["subspace"] == space]
        for place, method in enumerate(reversed(methods)):
            draw_row(ax, own.loc[own["method"] == method, "value"], method, place)
        ax.set_title(PANELS[space])
        ax.set_xlabel(f"worst-case rise at rho = {own['rho'].iloc[0]:g} ({loss_unit()})")
        readable(ax)
    label_rows(axes[0, 0], methods)
    return canvas


def _curves(rises: pd.DataFrame, rho: float, canvas: Canvas | None) -> Canvas:
    methods = method_order(rises["method"])
    canvas, axes = panels(len(methods), _COLUMNS, 1.35, canvas, sharex=True, sharey=True)
    reference = rises[(rises["method"] == REFERENCE) & (rises["subspace"] == "full")]
    for ax, method in zip(axes, methods, strict=True):
        if method != REFERENCE and len(reference):
            means = reference.groupby("rho")["value"].agg(lambda values: _summary(values)[0])
            ax.plot(means.index, means, color=_GREY, lw=0.8, ls=":", label=method_style(REFERENCE).drawn)
        own = rises[rises["method"] == method]
        for space, words in PANELS.items():
            inside = own[own["subspace"] == space]
            if len(inside):
                draw_curve(ax, inside, method_style(method).colour, hollow=space != "full", label=words)
        ax.axvline(rho, color="0.88", lw=4, zorder=0)
        ax.set_title(method_style(method).drawn)
        ax.set_xscale("log")
    radii = sorted(rises["rho"].unique())
    axes[0].set_xticks(radii, [f"{radius:g}" for radius in radii], rotation=45 if len(radii) > 4 else 0)
    _logarithmic(axes, rises["value"])
    canvas.supxlabel("radius rho of the ball (norm of the weight change)", fontsize=8)
    canvas.supylabel(f"worst-case rise ({loss_unit()})", fontsize=8)
    return canvas


def draw_curve(ax: Axes, rises: pd.DataFrame, colour: str, *, hollow: bool, label: str) -> None:
    """Geometric means over a logarithmic radius with their 95 % intervals, at the very radii.

    A radius with a rise of 0 has the arithmetic mean and no interval.
    """
    groups = rises.groupby("rho")["value"]
    radii = np.array([radius for radius, _ in groups], dtype=float)
    summary = np.array([_summary(values) for _, values in groups])
    fill = "white" if hollow else colour
    ax.errorbar(
        radii, summary[:, 0], yerr=np.nan_to_num(np.abs(summary[:, 1:].T - summary[:, 0])), color=colour,
        marker="o", ms=3.2, mfc=fill, lw=1.0, elinewidth=0.8, label=label,
    )  # fmt: skip


def _summary(values: pd.Series) -> tuple[float, float, float]:
    if (values > 0).all():
        return geometric_interval(values)
    return float(values.mean()), float("nan"), float("nan")


def searched_by(records: pd.DataFrame) -> str:
    """Who met the rises of a study: records of the time before there were two searches have no gap."""
    return "two independent searches" if (records["measure"] == "worst_case_gap").any() else "one search"


def with_ratios(records: pd.DataFrame) -> pd.DataFrame:
    """Rises, with the rise over the reference's at the same seed, space and radius; undefined where that is 0."""
    rises = records[is_rise(records) & records["subspace"].isin(list(PANELS))]
    rises = rises[np.isfinite(rises["value"].astype(float))]
    keys = ["train_size", "seed", "subspace", "rho"]
    reference = rises.loc[rises["method"] == REFERENCE, [*keys, "value"]].rename(columns={"value": "reference"})
    joined = rises.merge(reference, on=keys, how="left")
    joined["ratio"] = joined["value"] / joined["reference"].where(joined["reference"] > 0)
    return joined


def _logarithmic(axes: list[Axes], values: pd.Series) -> None:
    """Logarithmic in y; linear close to 0 if there are rises of 0, which a logarithmic axis would drop."""
    positive = values[values > 0]
    for ax in axes:
        if len(positive) and not (values <= 0).any():
            ax.set_yscale("log")
            rounded(ax.yaxis)
        else:
            ax.set_yscale("symlog", linthresh=positive.min() if len(positive) else 1.0)
        ax.xaxis.set_minor_locator(NullLocator())
