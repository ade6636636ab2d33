"""Rank correlations: scipy's number over all minima, and no difference between kinds within them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from analyses.judging.correlation import rank_correlations
from analyses.records import records_frame
from analyses.study import Study
from reports.correlations import correlation_table
from tests.analyses.mini import QUICK

METHODS: dict[str, Any] = {
    f"{kind}_{number}": {"method": "full", "learning_rate": 0.01 * (number + 1)} | settings
    for kind, settings in {"sgd": {"optimizer": {"name": "SGD"}}, "adam": {}}.items()
    for number in range(4)
}
STUDY = Study.model_validate(QUICK | {"methods": METHODS, "seeds": 2})


def records_of(rise: Any, loss: Any) -> pd.DataFrame:
    """Rises and test losses by kind, number of the column and seed."""
    rows = []
    for column in METHODS:
        kind, number = column.split("_")
        for seed in range(2):
            place = (kind, int(number), seed)
            common = {"method": column, "seed": seed, "train_size": 40}
            ball = {"ball": "l2", "rho": 0.1, "subspace": "full"}
            rows.append(common | ball | {"measure": "worst_case_rise", "value": rise(*place)})
            rows.append(common | {"measure": "test_loss", "value": loss(*place)})
            rows.append(common | {"measure": "train_loss", "value": 0.1 + seed})
    return records_frame(rows)


def found(records: pd.DataFrame) -> dict[str, Any]:
    (row,) = [
        row for row in rank_correlations(records, STUDY)
        if (row["measure"], row["outcome"]) == ("worst-case rise", "test loss")
    ]  # fmt: skip
    return row


def test_across_is_scipys_number_over_all_minima() -> None:
    noise = np.random.default_rng(0).normal(size=(2, 4, 2))
    kinds = {"sgd": 0, "adam": 1}
    records = records_of(lambda k, n, s: n + s / 10, lambda k, n, s: n + 2 * noise[kinds[k], n, s])
    points = [(n + s / 10, n + 2 * noise[k, n, s]) for k in (0, 1) for n in range(4) for s in (0, 1)]
    row = found(records)
    assert row["across"] == pytest.approx(kendalltau(*zip(*points, strict=True)).statistic)
    assert row["across_low"] <= row["across"] <= row["across_high"] and row["minima"] == 16 and row["kinds"] == 2


def test_a_difference_between_kinds_alone_is_none_within_them() -> None:
    offset = {"sgd": 0.0, "adam": 100.0}
    records = records_of(lambda k, n, s: offset[k] + n + s / 10, lambda k, n, s: offset[k] - n - s / 10)
    row = found(records)
    assert row["within"] == pytest.approx(-1) and row["across"] > 0


def test_the_table_shows_intervals_and_dashes() -> None:
    rows = rank_correlations(records_of(lambda k, n, s: n + s, lambda k, n, s: n - s), STUDY)
    shown, plain = correlation_table(rows)
    assert set(shown["kinds"]) == {"2"} and "within kinds" in shown and len(plain) == len(rows)
    assert shown["across all"].str.contains(r"\[").all()
    assert "test error" not in set(plain["outcome"])  # without accuracies


def test_few_columns_have_no_interval_and_measures_may_have_different_kinds() -> None:
    def value(kind: str, number: int, seed: int) -> float:
        return number + seed / 10

    records = records_of(value, value)
    few = records[records["method"].isin(sorted(set(records["method"]))[:4])]
    row = found(few)
    assert row["across"] == pytest.approx(1) and math.isnan(row["across_low"]) and math.isnan(row["within_high"])
    shown, _ = correlation_table([row, found(records)])
    assert shown.loc[0, "across all"] == "1" and "[" in shown.loc[1, "across all"]
    assert shown.columns[shown.isna().any()].empty
