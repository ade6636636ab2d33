"""Does flatness track the test loss? Kendall's rank correlation over the minima of a study."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from analyses.records import is_rise
from analyses.study import Study

_DRAWS = 500
_FEWEST, _FEWEST_FOR_INTERVALS = 3, 6
"""Columns of one kind between which an order means something, and columns in all of which intervals are drawn: those of
three cover the truth in 74 % of simulated studies instead of 95 %."""


def rank_correlations(records: pd.DataFrame, study: Study) -> list[dict[str, Any]]:
    r"""Kendall's :math:`\tau_b` of each measure with the test loss and with the test error, across and within kinds.

    Over all minima, seeds included; a run that diverged has none. Across: one :math:`\tau` over all. Within: the mean
    over the kinds of training (one update rule of one method) of each kind's own :math:`\tau`, which no difference
    between kinds can make: the comparison that Andriushchenko et al. (2023, arXiv 2302.07011, section 4) ask for.
    Intervals are 95 % percentile intervals of a bootstrap that draws columns, with all of their seeds, within each
    kind; NaN for fewer than six columns. Of few columns they are too short: where all are independent, six kinds of
    four columns with three seeds are covered in 88 % (across) and 96 % (within) of simulated studies.

    Returns:
        A row a measure and outcome: ``across`` and ``within``, each with ``low`` and ``high``, and the counts.
    """
    wide = _minima(records, study)
    rows = []
    for measure in _MEASURES:
        for outcome in ("test loss", "test error"):
            points = wide[["kind", "column", measure, outcome]].dropna()
            if points["column"].nunique() < _FEWEST:
                continue
            columns = points.groupby("kind")["column"].nunique()
            cloud = _Cloud(
                points[measure].to_numpy(float),
                points[outcome].to_numpy(float),
                points["kind"].to_numpy(),
                points["column"].to_numpy(),
                [str(kind) for kind in columns[columns >= _FEWEST].index],
            )
            found: dict[str, Any] = {"measure": measure, "outcome": outcome, "minima": len(points)}
            rows.append(found | {"kinds": len(cloud.ordered)} | cloud.correlations())
    return rows


_MEASURES = ("worst-case rise", "mean of own worst cases", "average-case rise", "top eigenvalue", "train loss")


def _minima(records: pd.DataFrame, study: Study) -> pd.DataFrame:
    """A row a minimum: its kind, its column, and its numbers."""
    keys = ["method", "train_size", "seed"]
    rho = np.isclose(records["rho"].astype(float), study.rho) & (records["subspace"] == "full")
    measure = records["measure"]
    first = (records["index"] == 1).fillna(False)
    top = (measure == "hessian_eigenvalue") & (records["algorithm"] == "lanczos") & first
    chosen = {
        "worst-case rise": is_rise(records, "full", study.rho),
        "mean of own worst cases": (measure == "own_worst_case_rise") & rho & (records["ball"] == "l2"),
        "average-case rise": (measure == "average_case_rise") & rho,
        "top eigenvalue": top,
        "train loss": measure == "train_loss",
        "test loss": measure == "test_loss",
        "test accuracy": measure == "test_accuracy",
    }
    parts = {
        name: records[mask].drop_duplicates(keys).set_index(keys)["value"].astype(float)
        for name, mask in chosen.items()
    }
    wide = pd.DataFrame(parts).reset_index()
    wide["test error"] = 1 - wide["test accuracy"]
    wide["column"] = wide["method"]
    wide["kind"] = [_kind(study, str(method)) for method in wide["method"]]
    return wide


def _kind(study: Study, column: str) -> str:
    """What is trained by one update rule of one method, whatever its rate, radius and batch size."""
    settings = study.methods[column]
    rule = study.training_of(column).optimizer
    return json.dumps(
        [settings.method or column, settings.primary, settings.adaptive, rule and rule.model_dump()], sort_keys=True
    )


@dataclass(frozen=True)
class _Cloud:
    """Minima as points, with the kind and the column of each, and the kinds within which an order means something."""

    x: np.ndarray
    y: np.ndarray
    kinds: np.ndarray
    columns: np.ndarray
    ordered: list[str]

    def correlations(self) -> dict[str, float]:
        """Both correlations with their intervals."""
        draws = np.array([self._taus(chosen) for chosen in self._resampled()])
        found: dict[str, float] = {}
        for name, tau, values in zip(("across", "within"), self._taus(np.arange(len(self.x))), draws.T, strict=True):
            finite = values[np.isfinite(values)]
            told = len(finite) and len(set(self.columns)) >= _FEWEST_FOR_INTERVALS
            low, high = np.percentile(finite, [2.5, 97.5]) if told else (math.nan, math.nan)
            found |= {name: tau, f"{name}_low": float(low), f"{name}_high": float(high)}
        return found

    def _taus(self, chosen: np.ndarray) -> tuple[float, float]:
        own = [self._tau(chosen[self.kinds[chosen] == kind]) for kind in self.ordered]
        finite = [tau for tau in own if not math.isnan(tau)]
        return self._tau(chosen), math.fsum(finite) / len(finite) if finite else math.nan

    def _tau(self, chosen: np.ndarray) -> float:
        if len(set(self.columns[chosen])) < 2:
            return math.nan
        return float(kendalltau(self.x[chosen], self.y[chosen]).statistic)

    def _resampled(self) -> Iterator[np.ndarray]:
        """Places of the points of columns drawn within each kind."""
        generator = np.random.default_rng(0)
        places = {column: np.flatnonzero(self.columns == column) for column in dict.fromkeys(self.columns)}
        by_kind = {kind: list(dict.fromkeys(self.columns[self.kinds == kind])) for kind in dict.fromkeys(self.kinds)}
        for _ in range(_DRAWS):
            drawn = [
                places[names[number]]
                for names in by_kind.values()
                for number in generator.integers(0, len(names), len(names))
            ]
            yield np.concatenate(drawn)
