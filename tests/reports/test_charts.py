"""The data behind the charts that answer to a pointer."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses.records import is_rise
from reports.charts import Chart, charts_of
from tests.reports.conftest import RADII, RHO, made_up_records

NOWHERE = Path("nowhere.csv")
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def charts(records: pd.DataFrame) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts_of(records, rho=RHO, tried=NOWHERE)}


def numbers(data: object) -> np.ndarray:
    """Numbers of a trace, which plotly may pack."""
    if isinstance(data, dict):
        return np.frombuffer(base64.b64decode(data["bdata"]), dtype=data["dtype"])
    return np.asarray(data, dtype=float)


def test_a_study_has_all_charts(charts: dict[str, Chart]) -> None:
    assert list(charts) == ["against-lora", "curves", "fit", "alignment", "surfaces"]
    for chart in charts.values():
        text = json.dumps(chart.plots, allow_nan=False)
        assert chart.described and len(text) < 1_000_000


def test_ratios_are_geometric_means_of_the_runs(records: pd.DataFrame, charts: dict[str, Chart]) -> None:
    rises = records[is_rise(records, "full", RHO)].pivot_table(index="seed", columns="method", values="value")
    logs = np.log(rises["bilora"] / rises["lora"])
    runs, mark = [one for one in charts["against-lora"].plots[0]["data"] if one["name"] == "Bi-LoRA"]
    assert numbers(runs["x"]) == pytest.approx(np.exp(logs).to_numpy())
    assert numbers(mark["x"]) == pytest.approx([np.exp(logs.mean())])
    half = 2.7764451 * logs.std(ddof=1) / np.sqrt(5)  # Student's t, four degrees of freedom
    assert numbers(mark["error_x"]["array"]) == pytest.approx([np.exp(logs.mean() + half) - np.exp(logs.mean())])


def test_curves_have_every_radius_in_both_spaces(records: pd.DataFrame, charts: dict[str, Chart]) -> None:
    plots = charts["curves"].plots
    assert [plot["layout"]["title"]["text"].split(", ")[1] for plot in plots] == [
        "over all weights",
        "inside the run's LoRA space",
    ]
    (curve,) = [one for one in plots[0]["data"] if one["name"] == "Bi-LoRA"]
    own = records[is_rise(records, "full") & (records["method"] == "bilora")]
    means = np.exp(own.assign(value=np.log(own["value"].astype(float))).groupby("rho")["value"].mean())
    assert numbers(curve["x"]) == pytest.approx(RADII)
    assert numbers(curve["y"]) == pytest.approx(means.to_numpy())


def test_surfaces_share_one_scale_and_turn_together(charts: dict[str, Chart]) -> None:
    chart = charts["surfaces"]
    scales = {(plot["data"][0]["cmin"], plot["data"][0]["cmax"]) for plot in chart.plots}
    ranges = {tuple(plot["layout"]["scene"]["zaxis"]["range"]) for plot in chart.plots}
    assert chart.linked and len(chart.plots) == 6
    assert len(scales) == 1 and ranges == scales


def test_fronts_of_tuned_settings(records: pd.DataFrame, tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "method": ["lora"] * 3,
            "learning_rate": [1e-3, 3e-3, 1e-2],
            "rise": [0.3, 0.5, 0.1],
            "train_loss": [0.1, 0.2, 0.3],
            "validation_loss": [1.0, 2.0, 3.0],
        }
    )
    table.to_csv(tmp_path / "tuning.csv", index=False)
    (chart,) = [one for one in charts_of(records, rho=RHO, tried=tmp_path / "tuning.csv") if one.name == "fit"]
    marks, front = chart.plots[-1]["data"]
    assert len(numbers(marks["x"])) == 3
    assert numbers(front["x"]) == pytest.approx([1.0, 3.0])  # the setting between is worse in both


def test_names_are_text_and_not_markup() -> None:
    charts = charts_of(made_up_records(("lora", HOSTILE), num_seeds=2), rho=RHO, tried=NOWHERE)
    text = json.dumps([chart.plots for chart in charts])
    assert "<script" not in text and "&lt;script&gt;" in text


def test_a_study_of_one_radius_without_lora_has_no_empty_charts() -> None:
    records = made_up_records(("random_aux",), num_seeds=1)
    records = records[records["rho"].isna() | (records["rho"] == RHO)]
    assert [chart.name for chart in charts_of(records, rho=RHO, tried=NOWHERE)] == ["fit", "alignment", "surfaces"]
    assert charts_of(made_up_records(()), rho=RHO, tried=NOWHERE) == []
