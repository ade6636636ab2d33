"""Loss surfaces of several methods, turned together and on one scale."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from reports.charts.base import Chart, plot_data
from reports.figures.surfaces import loss_grids, loss_limits
from reports.style import method_style
from reports.units import loss_unit

_TELLING = ("full", "sam", "lora", "lora_sam", "lora_sam_full", "bilora", "bilora_fresh", "bilora_stale")
_MOST = 6
"""Scenes on one page: browsers keep few drawing contexts for three dimensions."""


def surfaces_chart(records: pd.DataFrame) -> Chart | None:
    """The loss over the plane of two directions, a scene a method; none without surfaces."""
    grids = loss_grids(records)
    grids = {method: grid for method, grid in grids.items() if np.isfinite(grid.to_numpy()).any()}
    telling = ([method for method in _TELLING if method in grids] or list(grids))[:_MOST]
    if not telling:
        return None
    low, high = loss_limits({method: grids[method] for method in telling})
    ticks = [10.0**power for power in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)]
    scale = {"cmin": np.log10(low), "cmax": np.log10(high), "colorscale": "Viridis", "showscale": False}
    plots = []
    for method in telling:
        grid = grids[method]
        losses = grid.to_numpy().T
        figure = go.Figure(
            go.Surface(
                x=grid.index.tolist(), y=grid.columns.tolist(), z=np.log10(losses.clip(low, high)).tolist(),
                customdata=losses.tolist(), **scale,
                hovertemplate="inside %{x:.3g}, outside %{y:.3g}: %{customdata:.3g} " + loss_unit() + "<extra></extra>",
            )
        )  # fmt: skip
        height = {"range": [np.log10(low), np.log10(high)], "tickvals": np.log10(ticks).tolist()}
        figure.update_scenes(
            xaxis_title="inside LoRA", yaxis_title="outside", aspectmode="cube",
            zaxis=height | {"ticktext": [f"{tick:g}" for tick in ticks], "title": "loss"},
            camera={"eye": {"x": 1.5, "y": -1.5, "z": 1.0}},
        )  # fmt: skip
        figure.update_layout(title={"text": escape(method_style(method).label), "font": {"size": 13}}, height=330)
        data = plot_data(figure)
        data["layout"]["margin"] = {"l": 0, "r": 0, "t": 30, "b": 0}
        plots.append(data)
    return Chart(
        "surfaces",
        "Loss surfaces around the first seed's minima",
        "Training loss over two unit directions through each minimum: the parts of the worst case found inside the "
        "run's LoRA space and outside it. One logarithmic scale of heights and colours; turning "
        "one turns all.",
        f"Surfaces of {len(telling)} minima; losses from {low:.2g} to {high:.2g} {loss_unit()}.",
        plots,
        linked=True,
    )
