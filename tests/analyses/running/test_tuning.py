"""Settings that are tried, the rule that chooses among them, and what the command says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from analyses.cli import main
from analyses.records.front import flatter_at_equal_fit, on_front
from analyses.running.tuning import at_the_edge, best_settings, tried, unfit
from analyses.study import MethodSettings, Study, StudyError, TuningSettings
from reports.figures.front import front_lines, plot_front
from tests.analyses.mini import QUICK

pytestmark = pytest.mark.usefixtures("svg_alone")

DESIGN = {"settings": 8, "learning_rate": [1e-4, 1e-1], "rho": [0.01, 1.0], "auxiliary_lr_ratio": [0.1, 10.0]}
METHODS: dict[str, Any] = {
    "lora": {"learning_rate": 0.003},
    "bilora": {"learning_rate": 0.003, "rho": 0.05},
    "bilora_share_a": {"method": "bilora", "learning_rate": 0.003, "rho": 0.05, "share": "A"},
    "random_aux": {"learning_rate": 0.003, "rho": 0.05},
}


def study_of(tuning: dict[str, Any]) -> Study:
    return Study.model_validate(QUICK | {"methods": METHODS, "tuning": {"seeds": [1001]} | tuning})


def test_a_design_tries_the_same_points_for_every_method() -> None:
    study = study_of({"design": DESIGN})
    assert study.tuning is not None
    points: dict[str, list[MethodSettings]] = {}
    for method, settings in tried(study, study.tuning):
        points.setdefault(method, []).append(settings)
    assert {method: len(own) for method, own in points.items()} == dict.fromkeys(METHODS, 8)
    rates = {method: [one.learning_rate for one in own] for method, own in points.items()}
    assert len(set(map(tuple, rates.values()))) == 1
    assert [one.rho for one in points["lora"]] == [0.0] * 8
    assert [one.rho for one in points["bilora"]] == [one.rho for one in points["random_aux"]]
    assert all(one.share == "A" for one in points["bilora_share_a"])
    assert {one.auxiliary_lr for one in points["random_aux"]} == {None}
    # Sobol points are even: each half of the range, in log units, holds half of them.
    assert sum(rate < np.sqrt(1e-4 * 1e-1) for rate in rates["lora"]) == 4


def test_methods_without_a_grid_keep_their_settings() -> None:
    study = study_of({"learning_rate": {"lora": [1e-3, 1e-2]}})
    assert study.tuning is not None
    assert [method for method, _ in tried(study, study.tuning)] == ["lora", "lora"]


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    common = {"method": "bilora_share_a", "rho": 0.1, "auxiliary_lr": 0.01, "train_loss": 0.01, "num_failed": 0}
    return pd.DataFrame([common | {"validation_accuracy_se": 0.01} | row for row in rows])


def test_ties_within_the_noise_go_to_the_lower_loss_and_variants_stay_variants() -> None:
    tuning, own = TuningSettings(seeds=[1], learning_rate={"x": [1]}), {"bilora_share_a": METHODS["bilora_share_a"]}
    methods = {name: MethodSettings(**settings) for name, settings in own.items()}
    rows = [
        {"learning_rate": 1e-3, "validation_accuracy": 0.800, "validation_loss": 0.60},
        {"learning_rate": 3e-3, "validation_accuracy": 0.795, "validation_loss": 0.50},
        {"learning_rate": 1e-2, "validation_accuracy": 0.780, "validation_loss": 0.40},
        {"learning_rate": 3e-2, "validation_accuracy": 0.900, "validation_loss": 0.10, "train_loss": 0.5},
        {"learning_rate": 1e-1, "validation_accuracy": 0.900, "validation_loss": 0.10, "num_failed": 1},
    ]
    chosen = best_settings(table(rows), tuning, methods)["bilora_share_a"]
    assert (chosen.learning_rate, chosen.share, chosen.method) == (3e-3, "A", "bilora")
    assert at_the_edge(table(rows), {"bilora_share_a": chosen}) == []
    (warning,) = at_the_edge(table(rows[:2]), {"bilora_share_a": chosen})
    assert warning == "bilora_share_a: learning_rate 0.003 is the highest of 2 tried; try beyond it"


def test_the_front_holds_what_nothing_beats() -> None:
    fit, rise = pd.Series([1.0, 2.0, 3.0, 2.0]), pd.Series([3.0, 2.0, 2.5, 2.0])
    assert on_front(fit, rise).tolist() == [True, True, False, True]
    rows = pd.DataFrame(
        {"method": ["a", "a", "b", "b"], "train_loss": [0.2, 0.05, 0.1, 0.3], "rise": [0.4, 0.9, 0.5, 0.3]}
    )
    flatter = flatter_at_equal_fit(rows, "a", "b", fit="train_loss")
    assert flatter["rise"].tolist() == [0.4] and flatter["ratio"].tolist() == [0.8]
    said = front_lines(rows.assign(validation_loss=rows["train_loss"]), "b")
    assert said[0].startswith("a: 1 of 2 settings are flatter") and said[0].endswith("at best 0.80 ×")
    axes = plot_front(rows.assign(validation_loss=rows["train_loss"])).axes
    assert [ax.get_xlabel() for ax in axes] == ["train loss", "validation loss"]
    drawn = [line for line in axes[0].lines if line.get_label() in ("a", "b")]
    assert [line.get_xydata().tolist() for line in drawn] == [
        [[0.05, 0.9], [0.2, 0.4]], [[0.1, 0.5], [0.3, 0.3]],
    ]  # fmt: skip


def test_the_command_tries_chooses_and_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuning = {"seeds": [7], "learning_rate": {"lora": [1e-3, 1e-2], "bilora": [1e-3, 1e30]}, "rho": {"bilora": [0.05]},
              "max_train_loss": 10.0, "rise": True}  # fmt: skip
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(QUICK | {"methods": METHODS, "tuning": tuning}))
    assert main(["tune", "--config", str(config), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "at the edge: lora: learning_rate" in shown and "not tuned" in shown and "bilora_share_a" in shown
    results = pd.read_csv(tmp_path / "out" / "tuning.csv")
    diverged = results["num_failed"] == 1
    assert results.loc[diverged, ["method", "learning_rate"]].to_numpy().tolist() == [["bilora", 1e30]]
    assert (results["rise"].dropna() > 0).all() and len(results["rise"].dropna()) == 3
    assert (tmp_path / "out" / "figures" / "front.png").is_file()


def test_a_method_that_fits_nothing_is_told_and_the_others_are_chosen() -> None:
    rows = table([{"learning_rate": 0.1}, {"learning_rate": 0.2, "train_loss": 3.0, "method": "lora"}])
    rows = rows.assign(validation_accuracy=0.8, validation_loss=0.5)
    study = study_of({"learning_rate": {"lora": [0.2], "bilora_share_a": [0.1]}, "max_train_loss": 1.0})
    assert study.tuning is not None
    assert list(best_settings(rows, study.tuning, study.methods)) == ["bilora_share_a"]
    (sentence,) = unfit(rows, study.tuning)
    assert sentence.startswith("lora: no setting reaches a training loss of 1 at all seeds (the lowest is 3)")
    like = study.tuning.model_copy(update={"fit_like": "lora"})
    with pytest.raises(StudyError, match=r"tuning\.fit_like: lora: no setting reaches"):
        best_settings(rows, like, study.methods)
