"""How much of the dominant curvature lies in the column spaces, layer by layer, against chance."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from reports.charts.base import Chart, marks, plot_data
from reports.figures.alignment import CAPTURED, short_name
from reports.style import method_order

_REFERENCES = {
    "captured_energy_null": ("chance", "#888", "solid"),
    "captured_energy_optimum": ("optimum", "#888", "dot"),
}

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
    figure = go.Figure()
    for method in methods:
        own = means["captured_energy"][method].reindex(layers)
        figure.add_scatter(
            x=names, y=own.tolist(), mode="markers", visible=True if method in _SHOWN else "legendonly",
            hovertemplate="%{x}: %{y:.1%}<extra>%{fullData.name}</extra>",
            **{key: value for key, value in marks(method).items() if key != "line"},
        )  # fmt: skip
    for measure, (name, colour, dash) in _REFERENCES.items():
        own = means.reindex([(measure, subject, layer) for layer in layers])
        figure.add_scatter(
            x=names, y=own.tolist(), mode="lines", name=name, line={"color": colour, "dash": dash, "shape": "hvh"},
            hovertemplate="%{x}: %{y:.1%}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(title="adapted layer (block · module)", tickangle=-90)
    figure.update_yaxes(title="captured share of the block", tickformat=".0%", rangemode="tozero")
    figure.update_layout(height=480, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})
    data = plot_data(figure)
    data["layout"]["margin"] = {"l": 60, "r": 12, "t": 90, "b": 110}
    whole = means["captured_energy"][subject].mean()
    return Chart(
        "alignment",
        "Does the auxiliary see the dominant curvature?",
        "Share of the dominant Hessian eigenvectors' blocks in the column space of the auxiliary (of the primary for "
        "methods without one), means over eigenvectors and runs. Line: the exact mean for a random space of the same "
        "rank; dotted: the most that any space of that rank could hold. A click on a grey name shows its method.",
        f"On average {whole:.0%} of a block, over {len(layers)} layers.",
        [data],
    )
