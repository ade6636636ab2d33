"""The front between flatness and fit: which settings are flatter than all that fit as well."""

from __future__ import annotations

import pandas as pd


def on_front(fit: pd.Series, rise: pd.Series) -> pd.Series:
    """Whether no other setting is at least as good in both numbers and better in one; small is good.

    >>> on_front(pd.Series([0.1, 0.2, 0.3]), pd.Series([0.5, 0.6, 0.2])).tolist()
    [True, False, True]
    """
    kept = []
    for x, y in zip(fit, rise, strict=True):
        no_worse, better = (fit <= x) & (rise <= y), (fit < x) | (rise < y)
        kept.append(not bool((no_worse & better).any()))
    return pd.Series(kept, index=fit.index)


def flatter_at_equal_fit(table: pd.DataFrame, subject: str, reference: str, *, fit: str) -> pd.DataFrame:
    """Settings of one method that are flatter than every setting of another that fits at least as well.

    Args:
        table: Columns ``method``, ``rise`` and the fit's.
        subject: The method whose settings are asked for.
        reference: The method that they are compared with.
        fit: Column of the fit, ``train_loss`` or ``validation_loss``; small is good.

    Returns:
        Those rows of the subject, with the ``ratio`` of their rise to the lowest one of the reference at such a fit; a
        setting that fits better than all of the reference's is compared with nothing and left out.
    """
    whole = table.dropna(subset=["rise", fit])
    theirs = whole[whole["method"] == reference]
    found = []
    for _, row in whole[whole["method"] == subject].iterrows():
        as_good = theirs[theirs[fit] <= row[fit]]
        if len(as_good) and row["rise"] < as_good["rise"].min():
            found.append(row.to_dict() | {"ratio": row["rise"] / as_good["rise"].min()})
    return pd.DataFrame(found, columns=[*table.columns, "ratio"])
