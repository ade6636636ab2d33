"""One number a run from the records: what claims compare, paired over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from analyses.records import DIVERGED
from analyses.records.derive import with_derived
from analyses.study import ClaimSettings

_WORST_CASE: Mapping[str, str | float] = {"ball": "l2", "subspace": "full"}


class Values:
    """Values of a study by run.

    Args:
        records: Records of the study.
        settings: Radius of the worst cases that claims speak of.
    """

    def __init__(self, records: pd.DataFrame, settings: ClaimSettings) -> None:
        records = with_derived(records)
        self._none, self._rho = records.iloc[:0], settings.rho
        self._rows_of = dict(iter(records.groupby(["method", "measure"])))
        self._seeds = {measure: set(own["seed"]) for measure, own in records.groupby("measure")}
        self.columns = set(records["method"].dropna())

    def series(self, method: str, measure: str, where: Mapping[str, str | float], *, worst: float) -> pd.Series:
        """Mean of a measure by run of one method, indexed by (train size, seed).

        Args:
            method: Column of the study.
            measure: Measure.
            where: Column and value of the records that count.
            worst: Value of runs that diverged and of numbers that are not finite.
        """
        chosen = self._rows_of.get((method, measure), self._none)
        for column, value in self._rows(measure, where).items():
            held = chosen[column]
            if column == "ball":
                held = held.fillna("l2")  # records of the time before there were others
            same = np.isclose(held.astype(float), float(value)) if _is_number(value) else (held == value).fillna(False)
            chosen = chosen[same]
        found = chosen.assign(value=chosen["value"].where(np.isfinite(chosen["value"]), worst))
        means = found.groupby(["train_size", "seed"])["value"].mean()
        diverged = self._rows_of.get((method, DIVERGED), self._none)
        diverged = diverged[diverged["seed"] <= self._last_seed(measure)]
        lost = diverged.groupby(["train_size", "seed"])["value"].size() * worst
        return pd.concat([means, lost.rename("value").drop(means.index, errors="ignore")]).astype(float)

    def _last_seed(self, measure: str) -> float:
        """Up to which seed a measure was planned: some are for the first seeds of a study alone.

        A run that diverged beyond has nothing that it was to be compared by.
        """
        measured = self._seeds.get(measure)
        finished = self._seeds.get("train_loss", set())
        return max(measured) if measured and not measured >= finished else math.inf

    def has(self, method: str, measure: str) -> bool:
        """Whether there are any records of a measure for a method, or runs that diverged instead."""
        return (method, measure) in self._rows_of or (method, DIVERGED) in self._rows_of

    def gaps(self, method: str, where: Mapping[str, str | float]) -> pd.Series:
        """What the poorer of two searches for the worst case lacks of the best rise, by run; empty if not recorded."""
        return self.series(method, "worst_case_gap", where, worst=math.nan)

    def _rows(self, measure: str, where: Mapping[str, str | float]) -> dict[str, str | float]:
        of_worst_case = measure.startswith(("worst_case", "own_worst_case", "one_step_rise"))
        return ({**_WORST_CASE, "rho": self._rho} if of_worst_case else {}) | dict(where)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
