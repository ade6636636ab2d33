"""The table of rank correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from reports.tables import NOTHING, significant


def correlation_table(rows: Sequence[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Kendall's rank correlations as text, each with its interval, and as plain numbers."""
    shown = [
        {
            "measure at the minimum": row["measure"],
            "with the": row["outcome"],
            "minima": str(row["minima"]),
            "across all": _tau(row, "across"),
            "kinds": str(row["kinds"]),
            "within kinds": _tau(row, "within"),
        }
        for row in rows
    ]
    return pd.DataFrame(shown), pd.DataFrame(list(rows))


def _tau(row: dict[str, Any], place: str) -> str:
    tau, low, high = (_rounded(row[f"{place}{end}"]) for end in ("", "_low", "_high"))
    if tau is None or math.isnan(tau):
        return NOTHING
    if low is None or math.isnan(low):  # of too few columns for an interval
        return significant(tau)
    return f"{significant(tau)} [{significant(low)}, {significant(high)}]"


def _rounded(value: float | None) -> float | None:
    """Without the rounding of a mean of correlations that cancel."""
    return None if value is None else round(value, 9) + 0.0
