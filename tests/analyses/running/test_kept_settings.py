"""What a tuning, a look, a trajectory and a check of settings keep of the study's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from analyses.cli import main
from analyses.measures.minima import load_subject
from analyses.records import read_json, read_records
from analyses.running.preparing import check
from analyses.running.tuning import tried, write_table
from analyses.study import Cell, Study, StudyFolder, load_preset, load_study, preset_names
from tests.analyses.mini import MINI, QUICK

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.mark.parametrize("name", [name for name in preset_names() if not name.startswith("minilm")])
def test_every_preset_passes_its_own_check(name: str) -> None:
    check(load_preset(name))


def test_an_auxiliary_beside_all_weights_is_checked_for_its_rank() -> None:
    fresh = {"method": "bilora_fresh", "primary": "full", "rho": 0.05, "learning_rate": 0.001}
    check(Study.model_validate(QUICK | {"methods": {"whole": fresh}}))


def test_what_has_no_grid_keeps_the_studys_setting() -> None:
    methods = {"bilora": {"learning_rate": 0.003, "rho": 0.05, "auxiliary_lr": 0.0003}, "lora": {"learning_rate": 0.1}}
    tuning = {"seeds": [1], "learning_rate": {"bilora": [0.001, 0.01], "lora": [0.2]}}
    study = Study.model_validate(QUICK | {"methods": methods, "tuning": tuning})
    assert study.tuning is not None
    points = [(name, own.learning_rate, own.rho, own.auxiliary_lr) for name, own in tried(study, study.tuning)]
    assert points == [("bilora", 0.001, 0.05, 0.0003), ("bilora", 0.01, 0.05, 0.0003), ("lora", 0.2, 0.0, None)]


def test_rises_are_those_of_the_radius_and_the_search(tmp_path: Path) -> None:
    tuning = {"seeds": [7], "learning_rate": {"lora": [0.01]}, "max_train_loss": 10.0, "rise": True}
    found = []
    for rho in (0.1, 0.5):
        measures = QUICK["measures"] | {"worst_case": QUICK["measures"]["worst_case"] | {"radii": [0.1, 0.5]}}
        changed = {"methods": {"lora": {"learning_rate": 0.003}}, "tuning": tuning, "claims": {"rho": rho}}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(QUICK | changed | {"measures": measures}))
        assert (
            main(["tune", "--config", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
        )
        found += pd.read_csv(tmp_path / "out" / "tuning.csv")["rise"].tolist()
    assert found[1] > 2 * found[0] > 0


def test_small_rises_are_written_with_their_digits(tmp_path: Path) -> None:
    write_table(pd.DataFrame([{"method": "lora", "rise": 1.70349e-5, "train_loss": 0.123456789}]), tmp_path / "t.csv")
    assert pd.read_csv(tmp_path / "t.csv")["rise"].tolist() == [1.70349e-5]


def test_the_trajectory_is_that_of_the_merged_weights(tmp_path: Path) -> None:
    """Under rsLoRA products count alpha over the root of the rank; under DoRA the weights are no multiple of them."""
    methods = {
        "rs": {"method": "lora", "primary": "rslora", "learning_rate": 0.01},
        "dora": {"method": "lora", "primary": "dora", "learning_rate": 0.01},
        "lora": {"learning_rate": 0.01},
    }
    left_out = dict.fromkeys(QUICK["measures"]["seeds"], 0) | {"trajectory": 1, "dynamics": 1}
    measures = QUICK["measures"] | {
        "seeds": left_out, "surface": {"grid_points": 3, "path_points": 3}, "dynamics": {"snapshots": 3, "notes": 2},
    }  # fmt: skip
    given = {"methods": methods, "measures": measures, "seeds": 1, "training": {"epochs": 4, "batch_size": 10}}
    study_file = tmp_path / "study.yaml"
    study_file.write_text(yaml.safe_dump(QUICK | given | {"adapters": MINI["adapters"] | {"r": 4, "alpha": 8}}))
    assert main(["audit", "--config", str(study_file), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    records, folder = read_records(tmp_path / "out" / "records.parquet"), StudyFolder(tmp_path / "out")
    study = load_study(study_file)
    steps = records[records["measure"] == "trajectory"]
    assert set(steps["method"]) == {"rs", "lora"}
    for method, own in steps.groupby("method"):
        updates = load_subject(study, Cell(str(method), 0, 20), folder).minimum.updates
        true = np.sqrt(sum(float(update.double().square().sum()) for update in updates.values()))
        first, last = (own[own["step"] == step].iloc[0] for step in (own["step"].min(), own["step"].max()))
        way = np.hypot(first["alpha"] - last["alpha"], first["beta"] - last["beta"])
        assert way == pytest.approx(true, rel=0.02)  # in the plane of most of the way


def test_ia3_is_audited_beside_lora(tmp_path: Path) -> None:
    methods = {
        "lora": {"learning_rate": 0.01},
        "ia3": {"method": "lora", "primary": "ia3", "learning_rate": 0.01},
        "fresh": {"method": "bilora_fresh", "primary": "ia3", "learning_rate": 0.01, "rho": 0.1},
        "whole": {"method": "bilora_fresh", "primary": "full", "learning_rate": 0.01, "rho": 0.1},
    }
    left_out = dict.fromkeys(QUICK["measures"]["seeds"], 0) | dict.fromkeys(("trajectory", "dynamics"), 1)
    measures = QUICK["measures"] | {
        "seeds": left_out, "surface": {"grid_points": 3, "path_points": 3}, "dynamics": {"snapshots": 3, "notes": 2},
    }  # fmt: skip
    study_file, out = tmp_path / "study.yaml", tmp_path / "out"
    given = {"methods": methods, "measures": measures, "seeds": 1, "training": {"max_steps": 4, "batch_size": 10}}
    study_file.write_text(yaml.safe_dump(QUICK | given))
    assert main(["audit", "--config", str(study_file), "--out", str(out), "--jobs", "1"]) == 0
    records, study, folder = read_records(out / "records.parquet"), load_study(study_file), StudyFolder(out)
    found = {name: load_subject(study, Cell(name, 0, 20), folder).minimum for name in methods}
    assert set(records[records["measure"] == "worst_case_rise"]["method"]) == set(methods)
    assert found["lora"].weight_names == found["ia3"].weight_names == found["fresh"].weight_names
    for name in ("ia3", "fresh"):
        update = found[name].updates[found[name].weight_names[0]]
        scale = update / (dict(found[name].model.named_parameters())[found[name].weight_names[0]] - update)
        assert float(scale.std(dim=1).max()) < 1e-3 < float(scale.abs().max())  # one scale an output
    assert set(found["fresh"].factors) == {"auxiliary"} and not found["ia3"].factors
    assert set(records[records["measure"] == "trajectory"]["method"]) == {"lora"}


def test_looks_at_runs_of_other_settings_are_no_looks_at_these(tmp_path: Path) -> None:
    def audited(steps: int, seeds: int) -> dict[str, Any]:
        training = {"max_steps": steps, "batch_size": 10}
        study = QUICK | {"training": training, "seeds": seeds, "methods": {"lora": QUICK["methods"]["lora"]}}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
        out = tmp_path / "out"
        assert main(["audit", "--config", str(tmp_path / "study.yaml"), "--out", str(out), "--jobs", "1"]) == 0
        found: dict[str, Any] = read_json(out / "looks.json")
        return found

    audited(2, 1)
    assert [look["seeds"] for look in audited(2, 2)["looks"]] == [1, 2]
    assert [look["seeds"] for look in audited(3, 3)["looks"]] == [3]
    document = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert document["design"] == "The number of seeds was fixed: 3."


def test_a_folder_that_is_not_there_is_told_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", str(tmp_path / "run"), "--csv", str(tmp_path / "no" / "x.csv")]) == 2
    assert "--csv: there is no folder" in capsys.readouterr().err
