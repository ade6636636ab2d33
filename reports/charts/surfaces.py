"""Loss surfaces of several methods, turned together and on one scale."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports.charts.base import Chart, plot_data
from reports.figures.surfaces import loss_grids, scale_of
from reports.style import method_style
from reports.units import loss_unit

_TELLING = ("full", "sam", "lora", "lora_sam", "lora_sam_full", "bilora", "bilora_fresh", "bilora_stale")
_MOST = 6
"""Scenes on one page: browsers keep few drawing contexts for three dimensions."""


def surfaces_chart(records: pd.DataFrame) -> Chart | None:
    """The loss over the plane of two directions, a scene a method; none without surfaces."""
    grids = loss_grids(records)
    telling = ([method for method in _TELLING if method in grids] or list(grids))[:_MOST]
    if not telling:
        return None
    scale = scale_of({method: grids[method] for method in telling})
    low, high = scale.heights([scale.low, scale.high]).tolist()
    colours = {"cmin": low, "cmax": high, "colorscale": "Viridis", "showscale": False}
    height: dict[str, Any] = {"range": [low, high], "title": "loss"}
    if scale.logarithmic:
        powers = range(math.floor(low), math.ceil(high) + 1)
        height |= {"tickvals": [*powers], "ticktext": [f"{10.0**power:g}" for power in powers]}
    plots = []
    for method in telling:
        grid = grids[method]
        losses = grid.to_numpy().T
        figure = go.Figure(
            go.Surface(
                x=grid.index.tolist(), y=grid.columns.tolist(), z=scale.heights(losses).tolist(),
                customdata=losses.tolist(), **colours,
                hovertemplate="inside %{x:.3g}, outside %{y:.3g}: %{customdata:.3g} " + loss_unit() + "<extra></extra>",
            )
        )  # fmt: skip
        figure.update_scenes(
            xaxis_title="inside LoRA", yaxis_title="outside", aspectmode="cube",
            zaxis=height, camera={"eye": {"x": 1.7, "y": -1.7, "z": 1.1}},
        )  # fmt: skip
        figure.update_layout(title={"text": escape(method_style(method).label), "font": {"size": 13}}, height=330)
        data = plot_data(figure)
        data["layout"]["margin"] = {"l": 0, "r": 0, "t": 30, "b": 0}
        plots.append(data)
    kind = "logarithmic scale" if scale.logarithmic else "scale"
    return Chart(
        "surfaces",
        "Loss surfaces around the first seed's minima",
        "Training loss over two unit directions through each minimum: the parts of the worst case found inside the "
        f"run's LoRA space and outside it. One {kind} of heights and colours; turning one turns all.",
        f"Surfaces of {len(telling)} minima; losses from {scale.low:.2g} to {scale.high:.2g} {loss_unit()}.",
        plots,
        linked=True,
    )
