"""A row a method on a logarithmic axis: its runs, their geometric mean and the interval of that."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from reports.ranges import ANY, Range, cut
from reports.style import geometric_interval, method_style

_NARROWEST = 1 + 1e-6
_LONGEST = 30
"""Characters of a method's name in a narrow figure."""
_MOST_TICKS = 5


def draw_row(
    ax: Axes, values: pd.Series, method: str, place: int, *, means: pd.Series | None = None, within: Range = ANY
) -> None:
    """Dots for the runs, a mark for the geometric mean (of ``means``, or the runs), a line for its 95 % interval.

    The line ends where values are possible.
    """
    style = method_style(method)
    values = values[(values > 0) & np.isfinite(values.astype(float))].astype(float)
    if values.empty:
        return
    centre, low, high = geometric_interval(values if means is None or means.empty else means)
    ax.scatter(values, np.full(len(values), place), s=7, color=style.colour, alpha=0.35, lw=0)
    if np.isfinite(low):
        ax.plot(cut([low, high], within), [place, place], color=style.colour, lw=1.4)
    ax.plot(centre, place, color=style.colour, marker=style.marker, ms=style.marker_size + 0.5)


def label_rows(ax: Axes, methods: list[str]) -> None:
    """Names of the methods, the first on top."""
    labels = [_shortened(method_style(method).drawn) for method in reversed(methods)]
    ax.set_yticks(range(len(methods)), labels)
    ax.set_ylim(-0.6, len(methods) - 0.4)


def _shortened(name: str) -> str:
    """A name of which the panel leaves something; the beginning and the end tell variants apart."""
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[: half - 1]}…{name[-half:]}"


def readable(ax: Axes) -> None:
    """Logarithmic in x, with round numbers as ticks, few enough for a narrow panel and at least two."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    if low > 0 and high < low * _NARROWEST:  # one value, whose mean differs by rounding
        middle = math.sqrt(low * high)
        ax.set_xlim(middle / 2, middle * 2)
    rounded(ax.xaxis)


def rounded(axis: Axis) -> None:
    """Round numbers as ticks of a logarithmic axis, and no ticks between them."""
    low, high = axis.get_view_interval()
    if not (0 < low < high < np.inf):
        return
    decades = np.log10(high / low)
    if decades < 0.5:
        steps = np.array([1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
        powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        ticks = (powers[:, None] * steps).ravel()
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        every = max(1, math.ceil(len(ticks) / _MOST_TICKS))
        round_ones = np.flatnonzero(np.isin(ticks, powers))
        first = int(round_ones[0]) % every if len(round_ones) else 0  # 1 stays, where ratios are equal
        axis.set_major_locator(FixedLocator(ticks[first::every]))
    else:
        steps_of = (1.0, 2.0, 5.0) if decades < 1.5 else (1.0, 3.0) if decades < 2.5 else (1.0,)
        axis.set_major_locator(LogLocator(subs=steps_of, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
