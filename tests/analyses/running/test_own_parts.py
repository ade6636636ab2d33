"""A measure, a claim and a task from outside the package, as CONTRIBUTING.md describes them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from analyses.cli import main
from analyses.measures.registry import measures_at, measures_of
from analyses.records import read_json, read_records
from analyses.study import Cell, StudyError, parse_study
from analyses.tasks import build_task
from tests.analyses.mini import QUICK

pytestmark = pytest.mark.usefixtures("svg_alone")

MEASURE = '''
from analyses.measures.base import Measure


def weight_norm(subject, progress):
    """Norm of the update, scaled."""
    total = sum(float(update.double().square().sum()) for update in subject.minimum.updates.values())
    yield {"measure": "update_norm", "value": subject.settings["scale"] * total**0.5}


def breaks(subject, progress):
    """Nothing for Bi-LoRA."""
    if subject.cell.method == "bilora":
        raise ArithmeticError("no such <number>")
    yield {"measure": "broken", "value": 1.0}


UPDATE_NORM = Measure("update_norm", weight_norm)
BREAKS = Measure("breaks", breaks)
'''

METHOD = '''
import torch

from bilora.methods.lora import Lora


class Shrinking(Lora):
    """LoRA whose factors lose a tenth of themselves at every step."""

    name = "shrinking"
    summary = "LoRA that shrinks"

    @torch.no_grad()
    def after_step(self):
        super().after_step()
        for parameter in self.primary_parameters():
            parameter.mul_(0.9)


class Nothing:
    """No method."""
'''

TASK = '''
from analyses.study.task_settings import DigitsTask
from analyses.tasks.digits import Digits


class Upright(Digits):
    """Digits that are not rotated."""

    def __init__(self, settings, train_size, draw=None):
        super().__init__(DigitsTask(angle=0.0, pretrain_epochs=1, **settings), train_size, draw)
'''

CLAIM = {
    "claims": [
        {
            "name": "moves_as_far",
            "sentence": "{bilora} moves the weights as far as {lora} does",
            "short": "update is {effect} as long as {lora}'s",
            "measure": "update_norm",
            "subject": "bilora",
            "reference": "lora",
            "scale": "ratio",
            "direction": "equivalent",
            "margin": 10.0,
        }
    ],
    "labels": {"bilora": "Bi-LoRA", "lora": "LoRA"},
}


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of this process, and so of its workers, with a package of the user's."""
    (tmp_path / "mine").mkdir()
    for name, text in {"__init__": "", "measures": MEASURE, "methods": METHOD, "tasks": TASK}.items():
        (tmp_path / "mine" / f"{name}.py").write_text(text)
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(CLAIM))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def test_parts_of_ones_own_from_settings_to_verdict(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measures = QUICK["measures"] | {"own": {"mine.measures:UPDATE_NORM": {"scale": 2.0}}}
    study = QUICK | {"task": {"name": "mine.tasks:Upright"}, "measures": measures, "seeds": 2}
    (outside / "study.yaml").write_text(yaml.safe_dump(study))
    arguments = ["--config", str(outside / "study.yaml"), "--out", str(outside / "out")]
    assert main(["audit", *arguments, "--claims", str(outside / "claims.yaml")]) == 0
    (claim,) = read_json(outside / "out" / "claims.json")["claims"]
    assert claim["statement"] == "Bi-LoRA moves the weights as far as LoRA does" and claim["n"] == 2
    assert "Bi-LoRA's update is " in capsys.readouterr().out
    records = read_records(outside / "out" / "records.parquet")
    assert len(records[records["measure"] == "update_norm"]) == 4
    # The claims stay with the folder.
    assert main(["report", str(outside / "out")]) == 0
    assert len(read_json(outside / "out" / "claims.json")["claims"]) == 1


def test_a_method_of_ones_own_is_a_column(outside: Path) -> None:
    methods = QUICK["methods"] | {"shrinking": {"method": "mine.methods:Shrinking", "learning_rate": 0.003}}
    (outside / "study.yaml").write_text(yaml.safe_dump(QUICK | {"methods": methods, "seeds": 1}))
    assert main(["audit", "--config", str(outside / "study.yaml"), "--out", str(outside / "out")]) == 0
    records = read_records(outside / "out" / "records.parquet")
    losses = records[records["measure"] == "train_loss"].set_index("method")["value"]
    assert losses["shrinking"] > losses["lora"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"own": {"method": "mine.methods:Absent", "learning_rate": 0.1}}, "methods.own: method: cannot import"),
        ({"own": {"method": "mine.methods:Nothing", "learning_rate": 0.1}}, "is no class derived from bilora.Method"),
        ({"own": {"method": "mine.methods:Shrinking", "learning_rate": 0.1, "rho": 0.2}}, "does not use it"),
        ({"lora": {"method": "bilora", "learning_rate": 0.1}}, "lora: a column of this name is the method lora"),
    ],
)
def test_what_is_no_method_is_refused(
    outside: Path, methods: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (outside / "study.yaml").write_text(yaml.safe_dump(QUICK | {"methods": methods}))
    assert main(["audit", "--config", str(outside / "study.yaml"), "--out", str(outside / "out")]) != 0
    assert message in capsys.readouterr().err
    assert not (outside / "out").exists()


def test_a_cell_that_fails_is_named_and_the_others_finish(outside: Path) -> None:
    measures = QUICK["measures"] | {"own": {"mine.measures:BREAKS": {}}}
    (outside / "study.yaml").write_text(yaml.safe_dump(QUICK | {"measures": measures, "seeds": 1}))
    assert main(["audit", "--config", str(outside / "study.yaml"), "--out", str(outside / "out")]) == 1
    (failure,) = read_json(outside / "out" / "failures.json")
    assert failure["cell"] == "bilora-seed0-n20" and failure["reason"] == "ArithmeticError: no such <number>"
    records = read_records(outside / "out" / "records.parquet")
    assert records.loc[records["measure"] == "broken", "method"].tolist() == ["lora"]
    assert set(records.loc[records["measure"] == "worst_case_rise", "method"]) == {"lora", "bilora"}
    assert "no such &lt;number&gt;" in (outside / "out" / "report.html").read_text()


def test_a_measures_settings_are_in_its_key(outside: Path) -> None:
    studies = [
        parse_study(
            yaml.safe_dump(QUICK | {"measures": QUICK["measures"] | {"own": {"mine.measures:UPDATE_NORM": settings}}}),
            source="mine",
        )
        for settings in ({"scale": 1.0}, {"scale": 3.0})
    ]
    keys = [measures_of(study)["update_norm"].key(study) for study in studies]
    assert keys[0] != keys[1]
    assert "update_norm" in [measure.name for measure in measures_at(studies[0], Cell("lora", 0, 40))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"own": {"mine.measures:NOTHING": {}}}, "cannot import 'mine.measures:NOTHING'"),
        ({"own": {"nobody:X": {}}}, "cannot import 'nobody:X'"),
        ({"own": {"mine.measures:weight_norm": {}}}, "is a function, expected"),
        ({"seeds": {"update_norms": 2}}, "measures.seeds: expected some of"),
        (
            {"seeds": {"curvature": {"lorra": 2}}},
            "measures.seeds.curvature: expected some of the study's methods .*lorra",
        ),
    ],
)
def test_what_is_no_measure_is_refused(outside: Path, changes: dict, message: str) -> None:
    study = parse_study(yaml.safe_dump(QUICK | {"measures": QUICK["measures"] | changes}), source="mine")
    with pytest.raises(StudyError, match=message):
        measures_of(study)


def test_a_measures_seeds_may_depend_on_the_method() -> None:
    seeds = {"alignment": {"bilora": 2, "lora": 1}}
    study = parse_study(
        yaml.safe_dump(QUICK | {"seeds": 3, "measures": QUICK["measures"] | {"seeds": seeds}}), source=""
    )
    at = {
        (cell.method, cell.seed)
        for cell in study.cells()
        if "alignment" in [measure.name for measure in measures_at(study, cell)]
    }
    assert at == {("bilora", 0), ("bilora", 1), ("lora", 0)}


def test_a_task_that_is_not_there_is_refused(outside: Path) -> None:
    study = parse_study(yaml.safe_dump(QUICK | {"task": {"name": "mine.tasks:Nothing"}}), source="mine")
    with pytest.raises(StudyError, match=r"cannot import 'mine\.tasks:Nothing'"):
        build_task(study.task, 40)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--claims: cannot read"),
        ("claims: []", "claims: List should have at least 1 item"),
        ("claims: [{name: x", "not valid YAML"),
        (
            "claims: [{name: x, sentence: s, measure: m, subject: a, reference: b, scale: big, direction: below}]",
            "scale",
        ),
    ],
)
def test_claims_that_cannot_be_read_are_refused(
    outside: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (outside / "study.yaml").write_text(yaml.safe_dump(QUICK))
    path = outside / "wrong.yaml"
    if text is not None:
        path.write_text(text)
    arguments = ["--config", str(outside / "study.yaml"), "--out", str(outside / "out"), "--claims", str(path)]
    assert main(["audit", *arguments]) == 2
    assert message in capsys.readouterr().err and not (outside / "out").exists()


def test_a_sentence_with_an_unknown_role_is_refused(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim = CLAIM["claims"][0] | {"sentence": "{nobody} moves as far as {lora}"}
    (outside / "study.yaml").write_text(yaml.safe_dump(QUICK))
    (outside / "wrong.yaml").write_text(yaml.safe_dump(CLAIM | {"claims": [claim]}))
    arguments = ["--config", str(outside / "study.yaml"), "--out", str(outside / "out")]
    assert main(["audit", *arguments, "--claims", str(outside / "wrong.yaml")]) == 2
    assert "sentence: {nobody} is no role of the claim" in capsys.readouterr().err
