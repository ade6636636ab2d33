"""Every method against LoRA at the judged radius, seed by seed."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.records.seeds import seed_means
from reports.charts.base import Chart, marks, plot_data
from reports.figures.forest import PANELS, PREFIX, log_ratios
from reports.style import mean_interval, method_order, method_style


def forest_chart(records: pd.DataFrame, *, rho: float) -> Chart | None:
    """Geometric mean ratios with intervals and all seeds, a plot a measure; none without LoRA or another method."""
    ratios = log_ratios(records, rho=rho)
    if ratios.empty:
        return None
    methods = method_order(ratios["method"])[::-1]
    plots = []
    for measure, title in PANELS.items():
        own = ratios[ratios["measure"] == PREFIX + measure]
        figure = go.Figure()
        for method in methods:
            _add_row(figure, own[own["method"] == method], method)
        figure.add_vline(x=1, line_color="#888", line_width=1)
        figure.update_xaxes(type="log", title=f"{title} over LoRA's")
        figure.update_yaxes(
            type="category",
            automargin=True,
            categoryorder="array",
            categoryarray=[escape(method_style(m).label) for m in methods],
        )
        figure.update_layout(height=110 + 22 * len(methods), showlegend=False, hovermode="closest")
        data = plot_data(figure)
        data["layout"]["margin"] = {"l": 20, "r": 12, "t": 34, "b": 50}
        plots.append(data)
    rises = ratios[ratios["measure"] == f"{PREFIX}worst_case_rise"]
    means = pd.Series({method: _means(own).mean() for method, own in rises.groupby("method")}, dtype=float)
    ordered = [
        f"{method_style(str(method)).label} at {np.exp(mean):.2f}" for method, mean in means.sort_values().items()
    ]
    seen = f"Rises over LoRA's range from {ordered[0]} to {ordered[-1]}." if ordered else "No rises are recorded."
    return Chart(
        "against-lora",
        "Every method against LoRA",
        f"Ratios to LoRA at the same seed: worst-case rise of the training loss at rho = {rho:g} in the full space (a "
        "lower bound), training loss and test loss. Small marks are runs, large ones geometric means with 95 % "
        "Student-t intervals of the log ratios over seeds. A flatter minimum is a finding where the training loss is "
        "not larger.",
        seen,
        plots,
    )


def _means(runs: pd.DataFrame) -> pd.Series:
    """A number a seed, its mean over the training-set sizes; a number a run where no seed has every size."""
    means = seed_means(runs)
    return means if len(means) else runs["value"].astype(float)


def _add_row(figure: go.Figure, runs: pd.DataFrame, method: str) -> None:
    logs = runs["value"].astype(float)
    if logs.empty:
        return
    style, look = method_style(method), marks(method)
    label = escape(style.label)
    seeds = [f"seed {seed}, {size} examples" for seed, size in zip(runs["seed"], runs["train_size"], strict=True)]
    figure.add_scatter(
        x=np.exp(logs).tolist(), y=[label] * len(logs), mode="markers", name=label, text=seeds,
        marker={"color": style.colour, "size": 5, "opacity": 0.45},
        hovertemplate="%{x:.3g} ×, %{text}<extra>%{y}</extra>",
    )  # fmt: skip
    of_seeds = _means(runs)
    mean, half = mean_interval(of_seeds)
    centre = float(np.exp(mean))
    ends = (float(np.exp(mean + half)), float(np.exp(mean - half))) if np.isfinite(half) else (centre, centre)
    figure.add_scatter(
        x=[centre], y=[label], mode="markers", name=label, marker=look["marker"] | {"size": 11},
        error_x={"type": "data", "array": [ends[0] - centre], "arrayminus": [centre - ends[1]], "color": style.colour},
        hovertemplate=f"{centre:.3g} × [{ends[1]:.3g}, {ends[0]:.3g}], n = {len(of_seeds)}<extra>%{{y}}</extra>",
    )  # fmt: skip
