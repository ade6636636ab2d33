"""Where a figure is drawn: in one of its own, or in the axes or the part of a figure that its caller gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from reports.style import TWO_COLUMNS

Canvas: TypeAlias = Figure | SubFigure
"""A figure, or a part of one as `Figure.subfigures` makes it; for legends below the axes with the layout
``"constrained"``."""


def one_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes given, or those of a new figure of this size in inches."""
    return plt.subplots(figsize=size)[1] if ax is None else ax


def grid(
    rows: int, columns: int, size: tuple[float, float], canvas: Canvas | None = None, **options: Any
) -> tuple[Canvas, np.ndarray]:
    """Axes (rows, columns) in the canvas given, or in a new figure of this size in inches."""
    canvas = plt.figure(figsize=size) if canvas is None else canvas
    return canvas, canvas.subplots(rows, columns, squeeze=False, **options)


def panels(
    count: int, columns: int, height: float, canvas: Canvas | None = None, **options: Any
) -> tuple[Canvas, list[Axes]]:
    """A grid with as many panels as asked for, page-wide and ``height`` inches a row; places left over are empty."""
    rows = math.ceil(count / columns)
    canvas, axes = grid(rows, columns, (TWO_COLUMNS, 0.6 + height * rows), canvas, **options)
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    for ax in axes.flat[max(0, count - columns) : count]:  # with shared axes, also above places that are empty
        ax.tick_params(labelbottom=True)
    return canvas, list(axes.flat[:count])


def figure_of(drawn: Canvas | Axes) -> Figure:
    """The whole figure to which axes or a part belong."""
    figure = drawn.figure
    while not isinstance(figure, Figure):
        figure = figure.figure
    return figure


def legend_below(canvas: Canvas, axes: Sequence[Axes], columns: int, **options: Any) -> None:
    """One legend below all axes, each label once."""
    shown: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    canvas.legend([*shown.values()], [*shown], loc="outside lower center", ncols=columns, **options)


def legend_of(ax: Axes, given: Axes | None, columns: int) -> None:
    """Below the axes in a figure of their own; inside axes that the caller gave, whose figure is the caller's."""
    if given is None:
        legend_below(ax.figure, [ax], columns)
    else:
        ax.legend()
