"""What all charts share: their data as the page embeds them, and how a method looks in them."""

from __future__ import annotations

import json
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
    """A small title above a plot of the usual height, and its legend below."""
    title = {"text": text, "font": {"size": 13}}
    figure.update_layout(title=title, height=430, legend={"orientation": "h", "y": -0.25})


def marks(method: str) -> dict[str, Any]:
    """Name, legend group, marker and line of a method; names are shown as text, whatever they contain."""
    style = method_style(method)
    return {
        "name": escape(style.label),
        "legendgroup": escape(method),
        "marker": {"color": style.colour, "symbol": _SYMBOLS.get(style.marker, "circle")},
        "line": {"color": style.colour, "dash": _DASHES.get(style.line, "solid")},
    }
