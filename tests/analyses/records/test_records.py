"""Records of older files in today's columns."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analyses.records import read_records
from analyses.records.store import COLUMNS


def test_older_records_come_back_in_todays_columns(tmp_path: Path) -> None:
    old = [
        {"measure": "hessian_eigenvalue", "k": 2, "value": 5.0},
        {"measure": "ascent", "k": 40, "value": 0.1},
        {"measure": "angle_to_final", "k": 20, "other": "auxiliary", "value": 30.0},
        {"measure": "loss_barrier", "other": "lora", "value": 0.3},
        {"measure": "own_worst_case_rise", "k": 64, "value": 3.0, "stderr": 0.2},
    ]
    fixed = {"study": "s", "method": "bilora", "seed": 0, "train_size": 100}
    frame = pd.DataFrame([fixed | row for row in old]).astype({"k": "Int64"})
    frame.to_parquet(tmp_path / "records.parquet", index=False)
    found = read_records(tmp_path / "records.parquet")
    assert list(found.columns) == list(COLUMNS)
    by_measure = found.set_index("measure")
    assert by_measure.loc["hessian_eigenvalue", "index"] == 2
    assert by_measure.loc[["ascent", "angle_to_final"], "step"].tolist() == [40, 20]
    assert by_measure.loc[["ascent", "angle_to_final", "own_worst_case_rise"], "index"].isna().all()
    assert by_measure.loc["angle_to_final", "component"] == "auxiliary"
    assert by_measure.loc["loss_barrier", "other"] == "lora" and pd.isna(by_measure.loc["loss_barrier", "component"])
    assert by_measure.loc["own_worst_case_examples", "value"] == 64
    assert by_measure.loc["own_worst_case_rise", ["value", "stderr"]].tolist() == [3.0, 0.2]
