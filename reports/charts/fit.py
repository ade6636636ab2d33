"""Flatness against fit: every run, and every setting that was tried."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.records import is_rise
from analyses.records.front import on_front
from reports.charts.base import Chart, marks, plot_data, titled
from reports.style import method_order
from reports.units import loss_unit

_RUN = ["method", "train_size", "seed"]


def fit_chart(records: pd.DataFrame, tried: pd.DataFrame, *, rho: float) -> Chart | None:
    """Worst-case rise against training and test loss, run by run; and against the fit of every tuned setting.

    Args:
        records: Records of the study.
        tried: Columns ``method``, ``rise``, ``train_loss`` and ``validation_loss``, a row a setting, or no columns.
        rho: Radius of the rise.
    """
    rises = records[is_rise(records, "full", rho)].set_index(_RUN)["value"].rename("rise").astype(float)
    rises = rises[(rises > 0) & np.isfinite(rises)]  # what a logarithmic axis can show
    plots = []
    for fit, words in {"train_loss": "training loss", "test_loss": "test loss"}.items():
        loss = records[records["measure"] == fit].set_index(_RUN)["value"].rename("fit")
        runs = pd.concat([rises, loss], axis=1, join="inner").reset_index()
        runs = runs.assign(text=[f"seed {row.seed}, {row.train_size} examples" for row in runs.itertuples()])
        plots += _plot(runs, words, f"every run at rho = {rho:g}", front=False)
    if {"rise", "validation_loss"} <= set(tried.columns):
        shown = tried.rename(columns={"validation_loss": "fit"})
        named = [name for name in ("learning_rate", "rho", "auxiliary_lr") if name in tried]
        texts = [
            ", ".join(f"{name} {row[name]:g}" for name in named if pd.notna(row[name])) for _, row in tried.iterrows()
        ]
        plots += _plot(shown.assign(text=texts), "validation loss", "every setting tried, with fronts", front=True)
    if not plots:
        return None
    return Chart(
        "fit",
        "Flatness against fit",
        "Worst-case rise of the training loss (a lower bound) against losses at the minimum, one mark a run. Down and "
        "to the left is better in both; a method that is flatter only where it fits less well moves along one front. "
        "Lines, where settings were tuned, join those that no other setting of the method beats.",
        f"{len(rises)} runs of {rises.index.get_level_values(0).nunique()} columns.",
        plots,
    )


def _plot(points: pd.DataFrame, words: str, title: str, *, front: bool) -> list[dict[str, object]]:
    points = points[(points["rise"] > 0) & (points["fit"] > 0)]
    if points.empty:
        return []
    figure = go.Figure()
    for method in method_order(points["method"]):
        own, look = points[points["method"] == method], marks(method)
        figure.add_scatter(
            x=own["fit"].tolist(), y=own["rise"].tolist(), mode="markers", name=look["name"], marker=look["marker"],
            legendgroup=look["legendgroup"], text=[escape(text) for text in own["text"]],
            hovertemplate="rise %{y:.3g}, loss %{x:.3g}, %{text}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
        if front:
            best = own[on_front(own["fit"], own["rise"])].sort_values("fit")
            figure.add_scatter(
                x=best["fit"].tolist(), y=best["rise"].tolist(), mode="lines", showlegend=False, hoverinfo="skip",
                line=look["line"] | {"width": 1}, legendgroup=look["legendgroup"],
            )  # fmt: skip
    figure.update_xaxes(type="log", title=f"{words} ({loss_unit()})")
    figure.update_yaxes(type="log", title=f"worst-case rise ({loss_unit()})")
    titled(figure, title)
    return [plot_data(figure)]
