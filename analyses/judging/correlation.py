"""Does flatness track the test loss? Kendall's rank correlation over the minima of a study."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from analyses.records import is_rise
from analyses.study import Study

_DRAWS = 1_000
_FEWEST = 3
"""Columns of one kind between which an order means something."""


def rank_correlations(records: pd.DataFrame, study: Study) -> list[dict[str, Any]]:
    r"""Kendall's :math:`\tau_b` of each measure with the test loss and with the test error, across and within kinds.

    Over all minima, seeds included. Across: one :math:`\tau` over all. Within: the mean over the kinds of training (one
    update rule of one method) of each kind's own :math:`\tau`, which no difference between kinds can make: the
    comparison that Andriushchenko et al. (2023, arXiv 2302.07011, section 4) ask for. Intervals are 95 % percentile
    intervals of a bootstrap that draws columns, with all of their seeds, within each kind.

    Returns:
        A row a measure and outcome: ``across`` and ``within``, each with ``low`` and ``high``, and the counts.
    """
    wide = _minima(records, study)
    kinds = [kind for kind, own in wide.groupby("kind") if own["column"].nunique() >= _FEWEST]
    rows = []
    for measure in _MEASURES:
        for outcome in ("test loss", "test error"):
            if measure not in wide or outcome not in wide:
                continue
            points = wide[["kind", "column", measure, outcome]].dropna()
            if points["column"].nunique() < _FEWEST:
                continue
            found = {"measure": measure, "outcome": outcome, "minima": len(points), "kinds": len(kinds)}
            columns = {kind: list(own["column"].unique()) for kind, own in points.groupby("kind")}
            by_column = {column: own for column, own in points.groupby("column")}
            draws = [_taus(one, kinds, measure, outcome) for one in _resampled(by_column, columns)]
            for place, name in enumerate(("across", "within")):
                values = [draw[place] for draw in draws if not math.isnan(draw[place])]
                low, high = np.percentile(values, [2.5, 97.5]) if values else (math.nan, math.nan)
                tau = _taus(points, kinds, measure, outcome)[place]
                found |= {name: tau, f"{name}_low": float(low), f"{name}_high": float(high)}
            rows.append(found)
    return rows


_MEASURES = ("worst-case rise", "mean of own worst cases", "average-case rise", "top eigenvalue", "train loss")


def _minima(records: pd.DataFrame, study: Study) -> pd.DataFrame:
    """A row a minimum: its kind, its column, and its numbers."""
    keys = ["method", "train_size", "seed"]
    rho = np.isclose(records["rho"].astype(float), study.rho) & (records["subspace"] == "full")
    measure = records["measure"]
    top = (
        (measure == "hessian_eigenvalue") & (records["algorithm"] == "lanczos") & (records["index"] == 1).fillna(False)
    )
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


def _taus(points: pd.DataFrame, kinds: list[Any], measure: str, outcome: str) -> tuple[float, float]:
    across = _tau(points, measure, outcome)
    own = [_tau(points[points["kind"] == kind], measure, outcome) for kind in kinds]
    finite = [tau for tau in own if not math.isnan(tau)]
    return across, math.fsum(finite) / len(finite) if finite else math.nan


def _tau(points: pd.DataFrame, measure: str, outcome: str) -> float:
    if points["column"].nunique() < 2:
        return math.nan
    return float(kendalltau(points[measure], points[outcome]).statistic)


def _resampled(by_column: Mapping[Any, pd.DataFrame], columns: Mapping[Any, list[Any]]) -> Iterator[pd.DataFrame]:
    generator = np.random.default_rng(0)
    for _ in range(_DRAWS):
        drawn = [
            by_column[names[place]]
            for names in columns.values()
            for place in generator.integers(0, len(names), len(names))
        ]
        yield pd.concat(drawn, ignore_index=True)
