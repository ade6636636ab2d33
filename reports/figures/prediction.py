"""How far the quadratic model predicts the worst case."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from analyses.records import is_rise
from reports.style import ONE_COLUMN, method_order, method_style, plot_context


def plot_prediction(records: pd.DataFrame) -> Figure:
    """Rise found by the ascent over the rise that the quadratic model predicts, against the radius.

    Args:
        records: Long-form records with ``quadratic_rise`` and ``worst_case_rise`` rows.
    """
    keys = ["method", "seed", "train_size", "rho"]
    predicted = records[records["measure"] == "quadratic_rise"].set_index(keys)["value"]
    found = records[is_rise(records, "full")]
    ratios = (found.set_index(keys)["value"] / predicted[predicted > 0]).dropna().rename("ratio").reset_index()
    with plot_context():
        figure, ax = plt.subplots(figsize=(ONE_COLUMN, 3.4))
        for method in method_order(ratios["method"]):
            own = ratios[ratios["method"] == method].groupby("rho")["ratio"].mean()
            style = method_style(method)
            ax.plot(
                own.index, own, color=style.colour, ls=style.line, marker=style.marker, ms=style.marker_size,
                label=style.label,
            )  # fmt: skip
        ax.axhline(1, color="0.8", lw=3, zorder=0)
        ax.set_xscale("log")
        ax.set_yscale("log")
        radii = sorted(ratios["rho"].unique())
        ax.set_xticks(radii, [f"{rho:g}" for rho in radii])
        ax.minorticks_off()
        ax.set_xlabel("radius rho of the ball (norm of the weight change)")
        ax.set_ylabel("rise found / rise of the quadratic model")
        figure.legend(loc="outside lower center", ncols=2)
    return figure
