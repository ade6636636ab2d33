"""The numbers behind a figure: means over seeds, as a table beside it."""

from __future__ import annotations

import pandas as pd

from reports.style import mean_interval

DIMENSIONS = (
    *("method", "train_size", "measure", "component", "other", "subspace", "layer", "rho", "index", "step"),
    *("alpha", "beta"),
)


def figure_numbers(chosen: pd.DataFrame) -> pd.DataFrame:
    """One row a point of the figure: mean, half-width of the 95 % interval, and n, over seeds.

    Args:
        chosen: The records that the figure draws.
    """
    keys = [name for name in DIMENSIONS if chosen[name].notna().any()]
    rows = []
    for point, values in chosen.groupby(keys, dropna=False, sort=False)["value"]:
        mean, half = mean_interval(values)
        rows.append(dict(zip(keys, point, strict=True)) | {"mean": mean, "half_width": half, "n": len(values)})
    return pd.DataFrame(rows, columns=[*keys, "mean", "half_width", "n"])
