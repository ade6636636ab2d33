"""What all charts share: their data as the page embeds them, and how a method looks in them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from reports.style import method_style

_SYMBOLS = {
    "o": "circle", "s": "square", "D": "diamond", "d": "diamond-tall", "^": "triangle-up", "v": "triangle-down",
    "<": "triangle-left", ">": "triangle-right", "*": "star", "P": "cross", "X": "x", "x": "x-thin-open",
    "p": "pentagon", "h": "hexagon", "8": "octagon",
}  # fmt: skip
_GRID = "#8883"
_USUAL, _PLOT, _ROW = 430, 350, 29
"""Heights in pixels: of a plot with a short legend, of one without any, of a legend's row."""
_NARROW, _MARK, _LETTER = 280, 45, 6.5
"""Widths in pixels: of a legend where plots stand side by side or on a phone, of an entry's mark, of a letter."""
_DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}


@dataclass(frozen=True)
class Chart:
    """A chart of one or several plots side by side, which stand below each other where the page is narrow.

    Attributes:
        name: Of the chart, for anchors.
        title: Heading.
        caption: How its numbers were obtained.
        described: What is seen, for those who do not see it.
        plots: Plotly figures as plain data.
        linked: Whether turning one of its scenes turns them all.
    """

    name: str
    title: str
    caption: str
    described: str
    plots: Sequence[dict[str, Any]]
    linked: bool = False


def plotly_source() -> str:
    """plotly.js, to be put into a page: nothing is fetched."""
    return str(get_plotlyjs())


def plot_data(figure: go.Figure) -> dict[str, Any]:
    """A figure as plain data, without plotly's own template: the page's colours show through."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"namelength": -1},
        margin={"l": 60, "r": 12, "t": 34, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 12},
    )
    figure.update_xaxes(gridcolor=_GRID, zeroline=False)
    figure.update_yaxes(gridcolor=_GRID, zeroline=False)
    found: dict[str, Any] = json.loads(figure.to_json())
    return found


def titled(figure: go.Figure, text: str) -> None:
    """A small title above a plot, and its legend below, for whose rows the plot is higher than usual."""
    title = {"text": text, "font": {"size": 13}}
    names = [trace.name for trace in figure.data if trace.showlegend is not False and trace.name]
    rows = math.ceil(sum(_MARK + _LETTER * len(name) for name in names) / _NARROW)
    height = max(_USUAL, _PLOT + _ROW * rows)
    figure.update_layout(title=title, height=height, legend={"orientation": "h", "y": -0.25})


def marks(method: str) -> dict[str, Any]:
    """Name, legend group, marker and line of a method; names are shown as text, whatever they contain."""
    style = method_style(method)
    return {
        "name": escape(style.label),
        "legendgroup": escape(method),
        "marker": {"color": style.colour, "symbol": _SYMBOLS.get(style.marker, "circle")},
        "line": {"color": style.colour, "dash": _DASHES.get(style.line, "solid")},
    }
