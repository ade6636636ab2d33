"""From a user's files to an audit without a line of Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from transformers import BertForSequenceClassification

from analyses.cli import main
from analyses.measures.radii import RISES
from analyses.records import read_json, read_records
from analyses.running.drafting import draft
from analyses.study import StudyError, load_study
from tests.analyses.own import bert, gpt2, reviews

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("svg_alone")]

SMALL = {"training": {"max_steps": 2, "batch_size": 16}, "seeds": 1}


def shrunk(path: Path) -> Path:
    """The drafted study with two steps of training and a small search."""
    settings = yaml.safe_load(path.read_text()) | SMALL
    settings["methods"] = {name: settings["methods"][name] for name in ("lora", "bilora")}
    settings["measures"]["worst_case"] |= {"steps": 2, "restarts": 1, "screened": 4, "max_passes": 1}
    settings["measures"]["seeds"] |= {"curvature": 0, "alignment": 0, "dynamics": 0}
    settings["measures"]["cost_rounds"] = 1
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_two_commands_audit_a_csv_with_a_local_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], architecture: str
) -> None:
    model = {"bert": bert, "gpt2": gpt2}[architecture](tmp_path / "model")
    data, study = tmp_path / "reviews.csv", tmp_path / "study.yaml"
    reviews()[["text", "label"]].to_csv(data, index=False)
    assert main(["init", "--model", str(model), "--data", str(data), "--out", str(study)]) == 0
    said = capsys.readouterr().out
    assert "15 cells, about" in said and "landscape audit --config" in said
    settings = load_study(study)
    assert settings.task.name == "text_classification"
    bert_layers = ["intermediate.dense", "key", "output.dense", "query", "value"]  # the pooler's is called dense, too
    wanted = {"bert": bert_layers, "gpt2": ["c_attn", "c_fc", "c_proj"]}
    assert settings.adapters.target_modules == wanted[architecture]
    assert settings.adapters.modules_to_save == {"bert": ["classifier"], "gpt2": ["score"]}[architecture]
    assert main(["audit", "--config", str(shrunk(study)), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "2 cells, about" in capsys.readouterr().out
    assert main(["audit", "--config", str(study), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    assert read_json(tmp_path / "out" / "failures.json") == []
    records = read_records(tmp_path / "out" / "records.parquet")
    assert set(records["measure"]) >= {"worst_case_rise", "test_loss", "test_accuracy"}
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_language_model_and_a_regression_are_audited_too(tmp_path: Path) -> None:
    frame = reviews()
    for name, columns, model in (("lm", ["text"], gpt2), ("score", ["text", "score"], bert)):
        path, study = tmp_path / f"{name}.csv", tmp_path / f"{name}.yaml"
        frame[columns].to_csv(path, index=False)
        label = ["--label", "score"] if name == "score" else []
        folder = model(tmp_path / f"{name}-model")
        assert main(["init", "--model", str(folder), "--data", str(path), "--out", str(study), *label]) == 0
        assert load_study(study).task.name == {"lm": "causal_lm", "score": "regression"}[name]
        out = tmp_path / f"{name}-out"
        assert main(["audit", "--config", str(shrunk(study)), "--out", str(out), "--jobs", "1"]) == 0
        assert read_json(out / "failures.json") == []
        assert ("test_accuracy" in set(read_records(out / "records.parquet")["measure"])) == (name == "lm")


def test_the_suggested_radii_are_those_of_the_rises(tmp_path: Path) -> None:
    data = tmp_path / "reviews.csv"
    reviews()[["text", "label"]].to_csv(data, index=False)
    names = {"fresh": 0, "rotten": 1}
    model = bert(tmp_path / "model", label2id=names, id2label={i: name for name, i in names.items()})
    network = BertForSequenceClassification.from_pretrained(model)
    network.classifier.weight.data *= 100  # an untrained head is too small for a rise of 1 nat
    network.bert.pooler.dense.weight.data *= 30  # and so is what it gets
    network.save_pretrained(model)
    text = draft(str(model), str(data)).text
    radii = [float(line.rsplit(" ", 1)[1].rstrip(".")) for line in text.splitlines() if "nats at" in line]
    assert len(radii) == len(RISES) and radii == sorted(radii)
    assert f"radii: [{radii[1]:g}]" in text


def test_the_first_study_is_the_digits(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    assert main(["init", "--out", str(path)]) == 0
    assert load_study(path).task.name == "digits"


def test_what_cannot_be_told_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "a.csv"
    reviews().rename(columns={"text": "sentence", "film": "title"}).to_csv(data, index=False)
    model = str(bert(tmp_path / "model"))
    with pytest.raises(StudyError, match=r"--input: the columns of .* are sentence, label, score, title, number"):
        draft(model, str(data))
    with pytest.raises(StudyError, match="--label: there is no column 'stars'"):
        draft(model, str(data), label="stars")
    with pytest.raises(StudyError, match=r"--input: .* has no column 'sentense'; did you mean 'sentence'\? it has"):
        draft(model, str(data), inputs="sentense", label="label")
    reviews().to_csv(data, index=False, sep=";")
    with pytest.raises(StudyError, match=r"--data: .* has one column, 'text;label.*expected commas between columns"):
        draft(model, str(data))
    assert main(["init", "--model", model, "--out", str(tmp_path / "x.yaml")]) == 2
    assert "--model, --data: give both" in capsys.readouterr().err
    (tmp_path / "x.yaml").write_text("")
    assert main(["init", "--out", str(tmp_path / "x.yaml")]) == 2
    assert "exists; give another file" in capsys.readouterr().err
