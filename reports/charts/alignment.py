"""How much of the dominant curvature lies in the column spaces, layer by layer, against chance."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from reports.charts.base import Chart, marks, plot_data
from reports.figures.alignment import CAPTURED, short_name
from reports.style import method_order, method_style

_SHOWN = ("bilora", "lora", "dual_lora", "random_aux")


def alignment_chart(records: pd.DataFrame) -> Chart | None:
    """Captured share of the dominant eigenvectors' blocks by layer, with the exact mean under random spaces."""
    chosen = records[
        records["measure"].isin(CAPTURED) & (records["subspace"] == "column") & (records["layer"] != "all")
    ]
    if chosen.empty or "captured_energy" not in set(chosen["measure"]):
        return None
    layers = list(dict.fromkeys(chosen["layer"]))
    names = [short_name(layer) for layer in layers]
    means = chosen.groupby(["measure", "method", "layer"])["value"].mean()
    methods = method_order(chosen["method"])
    subject = "bilora" if "bilora" in methods else methods[0]
    shown = [method for method in methods if method in _SHOWN] or methods[:4]
    figure = go.Figure()
    for method in methods:
        own = means["captured_energy"][method].reindex(layers)
        visible, look = True if method in shown else "legendonly", marks(method)
        figure.add_scatter(
            x=names, y=own.tolist(), mode="markers", visible=visible,
            hovertemplate="%{x}: %{y:.1%}<extra>%{fullData.name}</extra>",
            **{key: value for key, value in look.items() if key != "line"},
        )  # fmt: skip
        chance = means.reindex([("captured_energy_null", method, layer) for layer in layers])
        figure.add_scatter(
            x=names, y=chance.tolist(), mode="lines", name=f"chance of {look['name']}", showlegend=False,
            legendgroup=look["legendgroup"], visible=visible,
            line={"color": look["line"]["color"], "width": 1, "shape": "hvh"},
            hovertemplate="%{x}: %{y:.1%}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    best = means.reindex([("captured_energy_optimum", subject, layer) for layer in layers])
    label = escape(method_style(subject).label)
    figure.add_scatter(
        x=names, y=best.tolist(), mode="lines", name=f"optimum of {label}'s rank",
        line={"color": "#888", "dash": "dot", "shape": "hvh"},
        hovertemplate="%{x}: %{y:.1%}<extra>%{fullData.name}</extra>",
    )  # fmt: skip
    figure.update_xaxes(type="category", title="adapted layer (block · module)", tickangle=-90)
    figure.update_yaxes(title="captured share of the block", tickformat=".0%", rangemode="tozero")
    figure.update_layout(height=480, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})
    data = plot_data(figure)
    data["layout"]["margin"] = {"l": 60, "r": 12, "t": 90, "b": 110}
    whole = means["captured_energy"][subject].mean()
    return Chart(
        "alignment",
        "Does the auxiliary see the dominant curvature?",
        "Share of the dominant Hessian eigenvectors' blocks in the column space of the auxiliary (of the primary for "
        "methods without one), means over eigenvectors and runs. Lines in a method's colour: the exact mean for random "
        "spaces of its ranks; dotted: the most that any space of the named method's rank could hold. A click on a grey "
        "name shows its method.",
        f"{method_style(subject).label} has on average {whole:.0%} of a block, over {len(layers)} layers.",
        [data],
    )
