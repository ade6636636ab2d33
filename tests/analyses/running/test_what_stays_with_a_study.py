"""A study keeps its model, its data and its claims; what does not fit its folder is refused at the door."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from analyses.cli import BAD_USAGE, main
from analyses.records import read_json
from analyses.running.drafting import draft
from analyses.running.preparing import prepare, refuse_changed_data
from analyses.study import Study, StudyError, StudyFolder, load_study, parse_study
from bilora.attaching import target_layers
from tests.analyses.mini import QUICK
from tests.analyses.own import bert, reviews

pytestmark = pytest.mark.usefixtures("svg_alone")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    reviews(60).to_csv(tmp_path / "reviews.csv", index=False)
    task = {"name": "text_classification", "model": str(bert(tmp_path / "bert")), "data": str(tmp_path / "reviews.csv"),
            "input": "text", "label": "label", "validation_size": 10, "test_size": 10}  # fmt: skip
    adapters = {"r": 2, "alpha": 4, "target_modules": ["query", "value"], "modules_to_save": ["classifier"]}
    methods = {"lora": {"learning_rate": 0.01}}
    return Study.model_validate(QUICK | {"task": task, "adapters": adapters, "methods": methods, "train_sizes": [20]})


def test_another_model_or_tokenizer_in_its_place_is_refused(study: Study, tmp_path: Path) -> None:
    folder, model = StudyFolder(tmp_path / "out"), tmp_path / "bert"
    prepare(study, folder)
    refuse_changed_data(study, folder)
    os.utime(model / "tokenizer.json")  # touched, not changed
    refuse_changed_data(study, folder)
    tokenizer = (model / "tokenizer.json").read_text()
    changed = json.loads(tokenizer)
    vocabulary = changed["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    (model / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(StudyError, match=r"task.model: the model or its tokenizer has changed since this study began"):
        refuse_changed_data(study, folder)
    (model / "tokenizer.json").write_text(tokenizer)
    refuse_changed_data(study, folder)
    network = AutoModelForSequenceClassification.from_pretrained(model)
    with torch.no_grad():
        next(network.parameters()).add_(0.1)
    network.save_pretrained(model)
    with pytest.raises(StudyError, match=r"task.model"):
        refuse_changed_data(study, folder)
    noted = read_json(folder.base(study) / "data.json")
    (folder.base(study) / "data.json").write_text(json.dumps({key: noted[key] for key in noted if key != "model"}))
    refuse_changed_data(study, folder)  # of a study that began before models were noted
    reviews(70).to_csv(tmp_path / "reviews.csv", index=False)
    with pytest.raises(StudyError, match=r"task.data: the data have changed"):
        refuse_changed_data(study, folder)


def test_tuning_and_training_look_at_the_data_too(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuning = {"seeds": [7], "learning_rate": {"lora": [0.01]}, "max_train_loss": 10.0}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study.model_dump(mode="json") | {"tuning": tuning}))
    command = ["--config", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    assert main(["tune", *command, "--executor", "sequential"]) == 0
    reviews(70).to_csv(tmp_path / "reviews.csv", index=False)
    for asked in (["tune", *command], ["train", *command, "--method", "lora"]):
        assert main(asked) == BAD_USAGE
        assert "task.data: the data have changed" in capsys.readouterr().err


def test_a_draft_adapts_layers_of_the_blocks_alone(tmp_path: Path) -> None:
    reviews(60).to_csv(tmp_path / "reviews.csv", index=False)
    made = draft(str(bert(tmp_path / "bert")), str(tmp_path / "reviews.csv"))
    study = parse_study(made.text, source="draft")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert")
    layers = target_layers(model, study.adapters.target_modules, study.adapters.modules_to_save)
    assert layers and all(".encoder.layer." in layer for layer in layers)
    assert sum(layer.endswith("dense") for layer in layers) == 6  # of two blocks: both of attention and both outside


def test_claims_given_to_a_report_stay_with_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(QUICK))
    out = tmp_path / "out"
    assert main(["audit", "--config", str(tmp_path / "study.yaml"), "--out", str(out), "--executor", "sequential"]) == 0
    claim = {"name": "mine", "sentence": "{a} loses less than {b}", "measure": "test_loss", "subject": "a",
             "reference": "b", "scale": "ratio", "direction": "below"}  # fmt: skip
    first, second = list(QUICK["methods"])[:2]
    mine = {"roles": {"a": first, "b": second}, "claims": [claim]}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(mine))
    assert main(["report", str(out), "--claims", str(tmp_path / "claims.yaml")]) == 0
    assert load_study(out / "study.yaml").claims.file is not None
    assert main(["report", str(out)]) == 0
    assert [one["name"] for one in read_json(out / "claims.json")["claims"]] == ["mine"]
    (out / "study.yaml").unlink()
    capsys.readouterr()
    assert main(["report", str(out)]) == BAD_USAGE
    assert f"DIR: {out} holds no study.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"a" * 101: {"method": "lora", "learning_rate": 0.01}}}, "at most 100 letters, digits"),
        ({"name": "a" * 101}, "at most 100 characters"),
        ({"seeds": True}, "seeds: expected no true or false, got True"),
        ({"claims": {"rho": True}}, "rho: expected no true or false, got True"),
    ],
)
def test_names_and_numbers_that_no_folder_or_study_can_have(changes: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study(yaml.safe_dump(QUICK | changes), source="study")
