"""Over how many runs a figure's means are, in words for its caption."""

from __future__ import annotations

import pandas as pd


def count(chosen: pd.DataFrame, *, by_size: bool = False) -> str:
    """Runs a method that the drawn records are of, as a range where methods have different numbers.

    Args:
        chosen: What a figure draws, with ``method``, ``train_size`` and ``seed``.
        by_size: Whether sizes of the training set have panels of their own.

    >>> frame = pd.DataFrame({"method": list("aab"), "train_size": 100, "seed": [0, 1, 0]})
    >>> count(frame)
    'n = 1 to 2 seeds'
    """
    runs = chosen[["method", "train_size", "seed"]].dropna().drop_duplicates()
    each = runs.groupby(["method", "train_size"] if by_size else "method").size()
    if each.empty:
        return "n = 0 runs"
    low, high = int(each.min()), int(each.max())
    number = f"{high}" if low == high else f"{low} to {high}"
    sizes, seeds = runs["train_size"].nunique(), runs["seed"].nunique()
    if sizes == 1 or by_size:
        return f"n = {number} {'seed' if high == 1 else 'seeds'}{' a panel' if sizes > 1 else ''}"
    return f"n = {number} runs, {seeds} {'seed' if seeds == 1 else 'seeds'} at {sizes} sizes of the training set"


def over(chosen: pd.DataFrame, *, logs: bool = False, bands: bool = False) -> str:
    """That means are drawn, over how many runs, and what the bars are.

    Args:
        chosen: What the figure draws.
        logs: Whether the means are geometric; the sentence then begins in lower case, after that word.
        bands: Whether intervals are bands.
    """
    runs = chosen[["method", "train_size", "seed"]].dropna().drop_duplicates()
    several = len(runs) and int(runs.groupby("method").size().max()) > 1
    of = "seeds" if runs["train_size"].nunique() < 2 else "runs"
    what = "Student-t intervals of the logarithms" if logs else "Student-t intervals"
    intervals = f"{'bands' if bands else 'bars'} are 95 % {what} over {of}" if several else "one seed has no interval"
    return f"{'means' if logs else 'Means'} over {count(chosen)}; {intervals}."
