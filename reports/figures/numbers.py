"""The numbers behind a figure: means over seeds, as a table beside it."""

from __future__ import annotations

import math

import pandas as pd

from reports.ranges import cut, possible
from reports.style import geometric_interval, mean_interval

_GEOMETRIC = ("geometric_mean", "geometric_low", "geometric_high")

DIMENSIONS = (
    *("method", "train_size", "measure", "component", "other", "ball", "subspace", "layer", "rho", "index", "step"),
    *("alpha", "beta"),
)


def figure_numbers(chosen: pd.DataFrame) -> pd.DataFrame:
    """One row a point of the figure, over seeds: mean, half-width of its 95 % interval, and n.

    Where all values are above 0 the geometric mean stands beside them, with the ends of the interval of the mean
    logarithm as far as values are possible: what figures with logarithmic axes draw.

    Args:
        chosen: The records that the figure draws.
    """
    keys = [name for name in DIMENSIONS if chosen[name].notna().any()]
    rows = []
    for point, of_point in chosen.groupby(keys, dropna=False, sort=False):
        values = of_point["value"]
        mean, half = mean_interval(values)
        geometric = geometric_interval(values) if (values > 0).all() else (math.nan,) * 3
        ends = cut(geometric, possible(of_point["measure"].iloc[0]))
        numbers = {"mean": mean, "half_width": half, **dict(zip(_GEOMETRIC, ends, strict=True)), "n": len(values)}
        rows.append(dict(zip(keys, point, strict=True)) | numbers)
    return pd.DataFrame(rows, columns=[*keys, "mean", "half_width", *_GEOMETRIC, "n"])
