"""How the adapters' spaces settle and how the auxiliary lies to the gradient, along training."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.style import TWO_COLUMNS, mean_interval, method_order, method_style, plot_context

SHOWN = {"primary": ("lora", "lora_sam", "bilora"), "auxiliary": ("bilora",)}


def plot_dynamics(records: pd.DataFrame) -> Figure:
    """Left: angle of the column spaces to where they end. Right: cos(auxiliary, G) of the methods that have one."""
    with plot_context():
        figure, (left, right) = plt.subplots(1, 2, figsize=(TWO_COLUMNS, 2.7))
        angles = records[(records["measure"] == "angle_to_final") & (records["subspace"] == "column")]
        for adapter, methods in SHOWN.items():
            for method in methods:
                own = angles[(angles["other"] == adapter) & (angles["method"] == method)]
                label = f"{method_style(method).label}, {adapter}"
                _curve(left, own, method, label, dashed=adapter == "auxiliary")
        left.axhline(10, color="0.6", lw=0.7, zorder=0)
        left.set_ylabel("angle to the final space (°)")
        cosines = records[records["measure"] == "cos_auxiliary_gradient"]
        for method in method_order(cosines["method"]):
            _curve(right, cosines[cosines["method"] == method], method, None)
        right.axhline(0, color="0.6", lw=0.7, zorder=0)
        right.set_ylabel("cos(auxiliary, gradient)")
        for ax in (left, right):
            ax.set_xlabel("optimizer step")
        handles, labels = left.get_legend_handles_labels()
        more = dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
        figure.legend([*handles, *more.values()], [*labels, *more], loc="outside lower center", ncols=3, handlelength=3)
    return figure


def _curve(ax: Axes, own: pd.DataFrame, method: str, label: str | None, *, dashed: bool = False) -> None:
    if own.empty:
        return
    steps = sorted(int(step) for step in own["k"].unique())
    summary = [mean_interval(own.loc[own["k"] == step, "value"]) for step in steps]
    style = method_style(method)
    line = "--" if dashed else style.line
    ax.plot(steps, [mean for mean, _ in summary], color=style.colour, ls=line, lw=1.1, label=label or style.label)
    low, high = ([mean + sign * half for mean, half in summary] for sign in (-1, 1))
    ax.fill_between(steps, low, high, color=style.colour, alpha=0.15, lw=0)
