"""Share of the dominant eigenvectors in the adapter's column space, block by block."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.canvas import legend_of, one_axes
from reports.ranges import SHARE, cut
from reports.style import ONE_COLUMN, TWO_COLUMNS, mean_interval, method_order, method_style, plot_context

CAPTURED = ("captured_energy", "captured_energy_null", "captured_energy_optimum")
SHOWN = ("bilora", "dual_lora", "lora", "random_aux")
_NARROW = 6
"""Blocks that fit into one column of a paper."""
LEGIBLE = 5
"""Methods beyond which the marks of neighbouring layers would run into each other."""


def plot_alignment(records: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Captured share by block, mean over its layers, the dominant eigenvectors and seeds, against null and optimum.

    Args:
        records: Long-form records with the measures `CAPTURED` by layer.
        ax: Where to draw; default a new figure.
    """
    chosen = records[(records["subspace"] == "column") & (records["layer"] != "all")]
    chosen = chosen[chosen["measure"].isin(CAPTURED)]
    chosen = chosen.assign(block=chosen["layer"].map(block_name))
    methods = shown_methods(chosen)
    blocks = list(dict.fromkeys(chosen["block"]))
    positions = np.arange(len(blocks))
    with plot_context():
        given, ax = ax, one_axes(ax, (ONE_COLUMN if len(blocks) <= _NARROW else TWO_COLUMNS, 3.0))
        for index, method in enumerate(methods):
            own = chosen[chosen["method"] == method]
            shares = own[own["measure"] == "captured_energy"]
            per_run = shares.groupby(["train_size", "seed", "block"])["value"].mean().unstack()
            summary = np.array([mean_interval(column) for _, column in per_run.reindex(columns=blocks).items()])
            ends = cut(summary[:, 0] + np.outer([-1, 1], summary[:, 1]), SHARE)
            style = method_style(method)
            ax.errorbar(
                positions + 0.14 * (index - (len(methods) - 1) / 2),
                summary[:, 0],
                yerr=np.nan_to_num(np.abs(ends - summary[:, 0])),
                color=style.colour,
                marker=style.marker,
                ms=0.85 * style.marker_size,
                ls="none",
                elinewidth=0.7,
                label=style.drawn,
            )
        subject = "bilora" if "bilora" in methods else methods[0]
        reference = chosen[chosen["method"] == subject].groupby(["block", "measure"])["value"].mean().unstack()
        reference = reference.reindex(index=blocks, columns=["captured_energy_null", "captured_energy_optimum"])
        null, best = reference.to_numpy().T
        ax.hlines(null, positions - 0.4, positions + 0.4, color="0.2", lw=1.2, label="random subspace (expected)")
        name = method_style(subject).drawn
        ax.hlines(best, positions - 0.4, positions + 0.4, color="0.65", lw=1.2, ls=":", label=f"optimum ({name})")
        ax.set_xticks(positions, blocks, rotation=90 if max(map(len, blocks), default=0) > 3 else 0)
        ax.set_xlim(-0.6, len(blocks) - 0.4)
        low, high = ax.get_ylim()
        ax.set_ylim(min(0.0, low), max(1.02, high))
        ax.set_ylabel("captured share")
        ax.set_xlabel("block of the model")
        legend_of(ax, given, 2 if len(blocks) <= _NARROW else 3)
    return ax


def shown_methods(records: pd.DataFrame) -> list[str]:
    """The methods of the figure: the usual ones, or all of a study that has none of these; at most `LEGIBLE`."""
    methods = method_order(records["method"])
    chosen = [name for name in methods if name in SHOWN] or methods
    return chosen if len(chosen) <= LEGIBLE else []


def block_name(layer: str) -> str:
    """``vit.layers.0.attention.q_proj`` belongs to block ``0``; a layer without a number is a block of its own."""
    number = next((part for part in layer.split(".") if part.isdigit()), "")
    return number or short_name(layer)


def short_name(layer: str) -> str:
    """``vit.layers.0.attention.q_proj`` becomes ``0·q_proj``."""
    parts = layer.split(".")
    number = next((part for part in parts if part.isdigit()), "")
    return f"{number}·{parts[-1]}" if number else parts[-1]
