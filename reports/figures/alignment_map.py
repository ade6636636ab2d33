"""Captured share layer by layer and eigenvector by eigenvector, against chance."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.canvas import Canvas, grid
from reports.figures.alignment import short_name
from reports.style import TWO_COLUMNS, method_order, method_style, plot_context

SHOWN = ("lora", "lora_sam", "bilora")
MOST_PANELS = 5


def plot_alignment_map(records: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """A panel a method: layers across, eigenvectors up; crosses mark shares at or below the random expectation.

    Args:
        records: Long-form records with ``captured_energy`` and ``captured_energy_null`` rows by layer.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    chosen = records[(records["subspace"] == "column") & (records["layer"] != "all")]
    methods = mapped_methods(chosen)
    layers = list(dict.fromkeys(chosen.loc[chosen["measure"] == "captured_energy", "layer"]))
    highest = _means(chosen[chosen["method"].isin(methods)], "captured_energy", ["method", "index"], layers).max().max()
    with plot_context():
        size = (TWO_COLUMNS, 0.9 + 1.05 * len(methods))
        canvas, axes = grid(len(methods), 1, size, canvas, sharex=True)
        for ax, method in zip(axes.flat, methods, strict=True):
            own = chosen[chosen["method"] == method]
            share, null = (
                _means(own, measure, ["index"], layers) for measure in ("captured_energy", "captured_energy_null")
            )
            shown = ax.imshow(share.to_numpy(dtype=float), aspect="auto", cmap="viridis", vmin=0, vmax=highest)
            below = np.argwhere((share <= null.reindex_like(share)).to_numpy())
            ax.plot(below[:, 1], below[:, 0], ls="none", marker="x", ms=3, color="white")
            ax.set_yticks(range(len(share)), [str(k) for k in share.index])
            ax.set_title(method_style(method).drawn)
        axes[-1, 0].set_xticks(range(len(layers)), [short_name(layer) for layer in layers], rotation=90)
        axes[-1, 0].set_xlabel("adapted layer (block · module)")
        canvas.supylabel("eigenvector", fontsize=8)
        canvas.colorbar(shown, ax=axes, label="captured share")
    return canvas


def mapped_methods(records: pd.DataFrame) -> list[str]:
    """The methods of the figure: the usual three, or the first `MOST_PANELS` of a study that has none of these."""
    methods = method_order(records["method"])
    return [method for method in methods if method in SHOWN] or methods[:MOST_PANELS]


def _means(records: pd.DataFrame, measure: str, index: list[str], layers: list[str]) -> pd.DataFrame:
    """Mean over seeds, layers across."""
    chosen = records[records["measure"] == measure]
    return chosen.pivot_table(index=index, columns="layer", values="value", aggfunc="mean").reindex(columns=layers)
