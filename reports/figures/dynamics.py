"""How the adapters' spaces settle and how the auxiliary lies to the gradient, along training."""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.style import TWO_COLUMNS, mean_interval, method_order, method_style, plot_context

SETTLING = {"primary": ("lora", "lora_sam", "bilora"), "auxiliary": ("bilora",)}
MOST_BANDS = 8
SHARES = {"primary": ("lora", "lora_sam", "bilora"), "auxiliary": ("bilora", "dual_lora", "random_aux")}


def plot_dynamics(records: pd.DataFrame) -> Figure:
    """Left: angle of the column spaces to where they end. Right: cos(perturbation, G) of the methods with one.

    More than eight cosines have no bands, which would hide one another.
    """
    with plot_context():
        figure, (left, right) = plt.subplots(1, 2, figsize=(TWO_COLUMNS, 2.7))
        angles = records[(records["measure"] == "angle_to_final") & (records["subspace"] == "column")]
        _by_adapter(left, angles, SETTLING)
        left.axhline(10, color="0.6", lw=0.7, zorder=0)
        left.set_ylabel("angle to the final space (°)")
        cosines = records[records["measure"] == "cos_auxiliary_gradient"]
        methods = method_order(cosines["method"])
        for method in methods:
            own = cosines[cosines["method"] == method]
            _curve(right, own, method, None, band=len(methods) <= MOST_BANDS)
        right.axhline(0, color="0.6", lw=0.7, zorder=0)
        right.set_ylabel("cos(perturbation, gradient)")
        for ax in (left, right):
            ax.set_xlabel("optimizer step")
        handles, labels = left.get_legend_handles_labels()
        more = dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
        _legend(figure, [*handles, *more.values()], [*labels, *more])
    return figure


def plot_alignment_training(records: pd.DataFrame) -> Figure:
    """Share of the minimum's dominant curvature in the adapters' column spaces at every snapshot."""
    shares = records[records["measure"] == "alignment_along_training"]
    with plot_context():
        figure, ax = plt.subplots(figsize=(TWO_COLUMNS, 2.9))
        _by_adapter(ax, shares, SHARES)
        ax.set_ylim(0, None)
        ax.set_xlabel("optimizer step")
        ax.set_ylabel("captured share of curvature")
        _legend(figure, *ax.get_legend_handles_labels())
    return figure


def _legend(figure: Figure, handles: list[Artist], labels: list[str]) -> None:
    """A legend below, for which the figure grows where a study has many variants."""
    figure.set_figheight(figure.get_figheight() + 0.14 * max(0, math.ceil(len(labels) / 3) - 3))
    figure.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=3)


def _by_adapter(ax: Axes, records: pd.DataFrame, shown: Mapping[str, tuple[str, ...]]) -> None:
    """A curve for each of the shown methods' adapters; in a study of variants, for those of all its methods."""
    known = {method for methods in shown.values() for method in methods}
    others = [] if known & set(records["method"]) else method_order(records["method"])
    for adapter, methods in shown.items():
        for method in others or methods:
            own = records[(records["component"] == adapter) & (records["method"] == method)]
            _curve(ax, own, method, f"{method_style(method).label}, {adapter}", dashed=adapter == "auxiliary")


def _curve(
    ax: Axes, own: pd.DataFrame, method: str, label: str | None, *, dashed: bool = False, band: bool = True
) -> None:
    if own.empty:
        return
    steps = sorted(int(step) for step in own["step"].unique())
    summary = [mean_interval(own.loc[own["step"] == step, "value"]) for step in steps]
    style = method_style(method)
    line = "--" if dashed else style.line
    ax.plot(steps, [mean for mean, _ in summary], color=style.colour, ls=line, lw=1.1, label=label or style.label)
    if not band:
        return
    low, high = ([mean + sign * half for mean, half in summary] for sign in (-1, 1))
    ax.fill_between(steps, low, high, color=style.colour, alpha=0.15, lw=0)
