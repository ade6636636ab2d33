"""Share of the dominant eigenvectors in the adapter's column space, layer by layer."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reports.style import TWO_COLUMNS, mean_interval, method_order, method_style, plot_context

SHOWN = ("bilora", "lora", "lora_sam", "random_aux")


def plot_alignment(records: pd.DataFrame) -> Figure:
    """Captured share by layer, mean over the dominant eigenvectors and seeds, against null and optimum."""
    chosen = records[(records["subspace"] == "column") & (records["layer"] != "all")]
    methods = [name for name in method_order(chosen["method"]) if name in SHOWN] or method_order(chosen["method"])
    layers = list(dict.fromkeys(chosen["layer"]))
    positions = np.arange(len(layers))
    with plot_context():
        figure, ax = plt.subplots(figsize=(TWO_COLUMNS, 3.6))
        for index, method in enumerate(methods):
            own = chosen[chosen["method"] == method]
            per_seed = own[own["measure"] == "captured_energy"].groupby(["layer", "seed"])["value"].mean()
            summary = np.array([mean_interval(per_seed[layer]) for layer in layers])
            style = method_style(method)
            ax.errorbar(
                positions + 0.14 * (index - (len(methods) - 1) / 2),
                summary[:, 0],
                yerr=np.nan_to_num(summary[:, 1]),
                color=style.colour,
                marker=style.marker,
                ms=6 if style.marker == "*" else 3.5,
                ls="none",
                elinewidth=0.7,
                label=style.label,
            )
        reference = chosen[chosen["method"] == methods[0]].groupby(["measure", "layer"])["value"].mean()
        null = [reference["captured_energy_null", layer] for layer in layers]
        best = [reference["captured_energy_optimum", layer] for layer in layers]
        ax.hlines(null, positions - 0.4, positions + 0.4, color="0.2", lw=1.2, label="random subspace (expected)")
        name = method_style(methods[0]).label
        ax.hlines(best, positions - 0.4, positions + 0.4, color="0.65", lw=1.2, ls=":", label=f"optimum ({name})")
        ax.set_xticks(positions, [_short(layer) for layer in layers], rotation=90)
        ax.set_xlim(-0.6, len(layers) - 0.4)
        ax.set_ylim(0, 1.02)
        ax.set_ylabel("captured share of the layer's block")
        ax.set_xlabel("adapted layer (block · module)")
        figure.legend(loc="outside lower center", ncols=6)
    return figure


def _short(layer: str) -> str:
    """``vit.layers.0.attention.q_proj`` becomes ``0·q_proj``."""
    parts = layer.split(".")
    number = next((part for part in parts if part.isdigit()), "")
    return f"{number}·{parts[-1]}" if number else parts[-1]
