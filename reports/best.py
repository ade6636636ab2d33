"""Which method is best in a column, where the seeds can tell."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

_LEVEL, _FEWEST = 0.05, 3


def significantly_best(values: pd.DataFrame, *, higher: bool) -> str | None:
    """The method of the best mean, if paired t-tests set it apart from every other one; Holm's correction, 5 %.

    Args:
        values: A row a seed, a column a method. Where one lacks a seed, by a run that diverged, say, none is the best:
            to leave the seed out would reward that.
        higher: Whether high values are good.

    >>> values = pd.DataFrame({"a": [3.0, 3.1, 2.9, 3.0], "b": [1.0, 1.2, 0.9, 1.1]})
    >>> significantly_best(values, higher=True)
    'a'
    >>> significantly_best(values.assign(b=[3.1, 2.9, 3.0, 3.0]), higher=True) is None
    True
    """
    values = values.dropna(axis=1, how="all")
    if values.shape[1] < 2 or len(values) < _FEWEST or not np.isfinite(values.to_numpy()).all():
        return None
    means = values.mean()
    best = means.idxmax() if higher else means.idxmin()
    p_values = [_p_value(values[best] - values[other]) for other in values.columns if other != best]
    apart = all(p <= _LEVEL / (len(p_values) - rank) for rank, p in enumerate(sorted(p_values)))  # all of Holm's steps
    return str(best) if apart else None


def _p_value(differences: pd.Series) -> float:
    if np.ptp(differences) == 0:
        return 0.0 if differences.iloc[0] else 1.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)
