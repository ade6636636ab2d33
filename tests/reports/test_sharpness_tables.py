"""Three measures of sharpness, the search error and other balls, as tables and in a sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reports.figures.worst_case import with_ratios
from reports.sharpness_tables import ball_table, few_examples, measures_table, search_table
from reports.tables import difference_table, main_table
from tests.reports.conftest import RADII, RHO


def test_measures_stand_side_by_side(records: pd.DataFrame) -> None:
    shown, plain = measures_table(records, rho=RHO)
    numbers = plain.set_index("method")
    assert len(shown) == records["method"].nunique()
    own = records[(records["measure"] == "own_worst_case_rise") & (records["rho"] == RHO)]
    rises = records[(records["measure"] == "worst_case_rise") & (records["rho"] == RHO) & records["ball"].isna()]
    rises = rises[rises["subspace"] == "full"]
    for method in ("sam", "bilora"):
        row = numbers.loc[method]
        assert row["worst case mean"] == pytest.approx(rises.loc[rises["method"] == method, "value"].mean())
        assert row["mean of own worst cases mean"] == pytest.approx(own.loc[own["method"] == method, "value"].mean())
        assert row["mean of own worst cases median stderr"] == 0.2
    assert (numbers["examples in that mean"] == 100).all()
    texts = shown["average case"].str.split(" ± ", expand=True).astype(float)
    assert texts[0].to_numpy() == pytest.approx(numbers["average case mean"].to_numpy(), rel=0.02)
    assert (texts[1] > 0).all()  # small numbers keep their digits
    assert numbers.loc["sam", "effective examples mean"] == pytest.approx(1.1)
    assert numbers.loc["sam", "largest example (%) mean"] == pytest.approx(97.0)
    assert measures_table(records[records["measure"] == "worst_case_rise"], rho=RHO)[0].empty


def test_the_sentence_names_those_whose_worst_case_one_example_carries(records: pd.DataFrame) -> None:
    sentence = few_examples(records, rho=RHO)
    assert "5 of 45 minima (SAM 5 of 5)" in sentence and "statement about that example" in sentence
    assert "no example" in few_examples(records[records["method"] != "sam"], rho=RHO)
    assert few_examples(records[records["measure"] == "worst_case_rise"], rho=RHO) == ""


def test_search_errors_are_counted_by_ball_and_radius(records: pd.DataFrame) -> None:
    worse = records.copy()
    gap = (worse["measure"] == "worst_case_gap") & (worse["rho"] == RHO) & (worse["method"] == "bilora")
    worse.loc[gap, "value"] = 0.2
    shown, plain = search_table(worse)
    row = plain[np.isclose(plain["rho"], RHO)].iloc[0]
    assert len(plain) == len(RADII) and row["minima"] == 45
    assert row["median gap"] == 0.01 and row["largest gap"] == 0.2
    assert row["below 5 %"] == pytest.approx(40 / 45)
    assert shown.loc[np.isclose(plain["rho"], RHO), "below 5 %"].item() == "89 %"


def test_other_balls_have_a_table_of_their_own_and_change_no_other(records: pd.DataFrame) -> None:
    """Rises of 50 nats in filter-wise balls of the claims' radius, whose units are others."""
    rises = records[records["measure"] == "worst_case_rise"]
    both = pd.concat([records, rises.assign(ball="filter", value=50.0)], ignore_index=True)
    _, plain = ball_table(both)
    assert (plain["filter (rho=0.1) mean"] == 50.0).all()
    assert ball_table(records)[0].empty
    for table in (main_table, difference_table, measures_table):
        pd.testing.assert_frame_equal(table(both, rho=RHO)[1], table(records, rho=RHO)[1])
    pd.testing.assert_frame_equal(with_ratios(both)["ratio"].to_frame(), with_ratios(records)["ratio"].to_frame())
