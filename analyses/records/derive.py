"""Numbers that follow from records and that both claims and figures use."""

from __future__ import annotations

import numpy as np
import pandas as pd

_RUN = ["method", "train_size", "seed"]
_PREDICTIONS = {"gain_spread_to_optimum": "ascent_gain_optimum", "gain_spread_to_ky_fan": "ascent_gain_ky_fan"}


def with_derived(records: pd.DataFrame) -> pd.DataFrame:
    """Records and, of every run, what follows from them: `gain_spreads`."""
    derived = gain_spreads(records)
    return pd.concat([records, derived], ignore_index=True) if len(derived) else records


def gain_spreads(records: pd.DataFrame) -> pd.DataFrame:
    """Spread of the log ratio of the auxiliary's first-order rise to each of two predictions, over training.

    The standard deviation over the noted steps at which the rise is positive: the prediction that the rise follows has
    the smaller one.
    """
    keys = [*_RUN, "step"]
    noted = records[records["measure"].isin(["ascent_gain", *_PREDICTIONS.values()])]
    wide = noted.pivot_table(index=keys, columns="measure", values="value")
    if "ascent_gain" not in wide:
        return records.iloc[:0]
    rising = wide[wide["ascent_gain"] > 0]
    found = []
    for name, prediction in _PREDICTIONS.items():
        logs: pd.Series = (rising["ascent_gain"] / rising[prediction]).map(np.log)
        found.append(logs.groupby(level=_RUN).std().rename("value").reset_index().assign(measure=name))
    derived = pd.concat(found).dropna(subset="value").reindex(columns=list(records.columns))
    return derived.astype(records.dtypes.to_dict())


def eigenvalues_by_sign(records: pd.DataFrame) -> pd.DataFrame:
    """Lanczos's Hessian eigenvalues, with ``index`` counted from the largest magnitude among those of a run's own sign.

    By magnitude alone the second eigenvalue of one run may be positive and that of the next negative: their mean is
    that of nothing.

    Returns:
        The records with ``component`` "positive" or "negative".
    """
    found = records[(records["measure"] == "hessian_eigenvalue") & (records["algorithm"] == "lanczos")]
    sign = pd.Series(np.where(found["value"] >= 0, "positive", "negative"), index=found.index, dtype="string")
    magnitude = found["value"].abs()
    ranks = magnitude.groupby([*(found[key] for key in _RUN), sign]).rank(ascending=False, method="first")
    return found.assign(component=sign, index=ranks.astype("Int64"))
