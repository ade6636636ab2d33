"""Worst-case rise over the radius of the ball."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from reports.charts.base import Chart, marks, plot_data, titled
from reports.figures.worst_case import searched_by
from reports.style import mean_interval, method_order, method_style
from reports.units import loss_unit

_NAMES = {"full": "over all weights", "lora": "inside the run's LoRA space"}


def curves_chart(records: pd.DataFrame, *, balls: tuple[str, ...] = ("l2",)) -> Chart | None:
    """Geometric means over runs with 95 % intervals, a plot a ball and space; none for a single radius."""
    rises = records[(records["measure"] == "worst_case_rise") & (records["value"] > 0)]
    rises = rises.assign(ball=rises["ball"].fillna("l2"))
    plots = []
    for ball in balls:
        for space, words in _NAMES.items():
            own = rises[(rises["ball"] == ball) & (rises["subspace"] == space)]
            if own["rho"].nunique() > 1:
                plots.append(_plot(own, f"{ball} ball, {words}"))
    if not plots:
        return None
    return Chart(
        "curves",
        "Worst-case rise over the radius",
        f"The largest rise of the training loss that {searched_by(records)} met in the ball: a lower bound. Geometric "
        "means over runs, bars 95 % Student-t intervals of their logarithms. A click on a name hides a method, a "
        "double click shows it alone.",
        _seen(rises[rises["ball"] == balls[0]], balls[0]),
        plots,
    )


def _seen(rises: pd.DataFrame, ball: str) -> str:
    """Who is flattest and who is sharpest at the largest radius of one ball."""
    largest = rises["rho"].max()
    last = rises[(rises["rho"] == largest) & (rises["subspace"] == "full")].groupby("method")["value"].median()
    if last.empty:
        return ""
    low, high = (method_style(str(name)).label for name in (last.idxmin(), last.idxmax()))
    return (
        f"In the {ball} ball at rho = {largest:g} the lowest median is {low}'s, {last.min():.3g}, the highest "
        f"{high}'s, {last.max():.3g}."
    )


def _plot(rises: pd.DataFrame, title: str) -> dict[str, object]:
    figure = go.Figure()
    for method in method_order(rises["method"]):
        of_method = rises[rises["method"] == method].groupby("rho")["value"]
        logs = pd.DataFrame({rho: mean_interval(np.log(values.astype(float))) for rho, values in of_method}).T
        centre, half = np.exp(logs[0]), logs[1].fillna(0.0)
        figure.add_scatter(
            x=list(logs.index), y=centre.tolist(), mode="lines+markers", **marks(method),
            error_y={
                "type": "data", "array": (centre * (np.exp(half) - 1)).tolist(),
                "arrayminus": (centre * (1 - np.exp(-half))).tolist(), "color": method_style(method).colour,
                "thickness": 1,
            },
            hovertemplate="rho %{x:g}: %{y:.3g} " + loss_unit() + "<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    radii = sorted(rises["rho"].unique())
    figure.update_xaxes(type="log", title="radius rho", tickvals=radii, ticktext=[f"{rho:g}" for rho in radii])
    figure.update_yaxes(type="log", title=f"rise ({loss_unit()})")
    titled(figure, title)
    return plot_data(figure)
