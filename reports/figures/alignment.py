"""Share of the dominant eigenvectors in the adapter's column space, layer by layer."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reports.style import TWO_COLUMNS, mean_interval, method_order, method_style, plot_context

CAPTURED = ("captured_energy", "captured_energy_null", "captured_energy_optimum")
SHOWN = ("bilora", "lora", "lora_sam", "random_aux")
LEGIBLE = 5
"""Methods beyond which the marks of neighbouring layers would run into each other."""


def plot_alignment(records: pd.DataFrame) -> Figure:
    """Captured share by layer, mean over the dominant eigenvectors and seeds, against null and optimum."""
    chosen = records[(records["subspace"] == "column") & (records["layer"] != "all")]
    chosen = chosen[chosen["measure"].isin(CAPTURED)]
    methods = shown_methods(chosen)
    layers = list(dict.fromkeys(chosen["layer"]))
    positions = np.arange(len(layers))
    with plot_context():
        figure, ax = plt.subplots(figsize=(TWO_COLUMNS, 3.6))
        for index, method in enumerate(methods):
            own = chosen[chosen["method"] == method]
            shares = own[own["measure"] == "captured_energy"]
            per_run = shares.groupby(["train_size", "seed", "layer"])["value"].mean().unstack()
            summary = np.array([mean_interval(column) for _, column in per_run.reindex(columns=layers).items()])
            style = method_style(method)
            ax.errorbar(
                positions + 0.14 * (index - (len(methods) - 1) / 2),
                summary[:, 0],
                yerr=np.nan_to_num(summary[:, 1]),
                color=style.colour,
                marker=style.marker,
                ms=0.85 * style.marker_size,
                ls="none",
                elinewidth=0.7,
                label=style.label,
            )
        subject = "bilora" if "bilora" in methods else methods[0]
        reference = chosen[chosen["method"] == subject].groupby(["layer", "measure"])["value"].mean().unstack()
        reference = reference.reindex(index=layers, columns=["captured_energy_null", "captured_energy_optimum"])
        null, best = reference.to_numpy().T
        ax.hlines(null, positions - 0.4, positions + 0.4, color="0.2", lw=1.2, label="random subspace (expected)")
        name = method_style(subject).label
        ax.hlines(best, positions - 0.4, positions + 0.4, color="0.65", lw=1.2, ls=":", label=f"optimum ({name})")
        ax.set_xticks(positions, [short_name(layer) for layer in layers], rotation=90)
        ax.set_xlim(-0.6, len(layers) - 0.4)
        low, high = ax.get_ylim()
        ax.set_ylim(min(0.0, low), max(1.02, high))
        ax.set_ylabel("captured share of the block")
        ax.set_xlabel("adapted layer (block · module)")
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def shown_methods(records: pd.DataFrame) -> list[str]:
    """The methods of the figure: the usual ones, or all of a study that has none of these; at most `LEGIBLE`."""
    methods = method_order(records["method"])
    chosen = [name for name in methods if name in SHOWN] or methods
    return chosen if len(chosen) <= LEGIBLE else []


def short_name(layer: str) -> str:
    """``vit.layers.0.attention.q_proj`` becomes ``0·q_proj``."""
    parts = layer.split(".")
    number = next((part for part in parts if part.isdigit()), "")
    return f"{number}·{parts[-1]}" if number else parts[-1]
