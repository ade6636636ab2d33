"""The charts of a page that answer to a pointer: plotly figures as data, drawn by the copy of plotly.js in the page."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from reports.charts.alignment import alignment_chart
from reports.charts.base import Chart, plotly_source
from reports.charts.curves import curves_chart
from reports.charts.fit import fit_chart
from reports.charts.forest import forest_chart
from reports.charts.surfaces import surfaces_chart

__all__ = ["Chart", "charts_of", "curves_chart", "plotly_source", "surfaces_chart"]


def charts_of(records: pd.DataFrame, *, rho: float, tried: Path) -> list[Chart]:
    """The charts of a study for which there are records.

    Args:
        records: Records of the study.
        rho: Radius at which claims are judged.
        tried: Table of the settings that were tuned, where there is one.
    """
    settings = pd.read_csv(tried) if tried.is_file() else pd.DataFrame()
    charts = (
        forest_chart(records, rho=rho),
        curves_chart(records),
        fit_chart(records, settings, rho=rho),
        alignment_chart(records),
        surfaces_chart(records),
    )
    return [chart for chart in charts if chart is not None]
