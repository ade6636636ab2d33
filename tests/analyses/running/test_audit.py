"""What an audit keeps: finished work, other seeds and methods, diverged runs, provenance, and settings."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from analyses.cli import main
from analyses.records import read_json, read_records, write_json
from analyses.records.integrity import seal_folder
from analyses.running import audit as audit_module
from analyses.running.preparing import prepare, refuse_changed_data
from analyses.running.stopping import Stopping, until_decided
from analyses.study import Cell, StudyFolder, load_study
from analyses.training.runs import load_minimum, study_task
from landscape import EmpiricalRisk
from reports.page import write_report
from tests.analyses.mini import QUICK
from tests.analyses.own import bert, reviews

pytestmark = pytest.mark.usefixtures("no_report")


def study_file(folder: Path, **changes: object) -> str:
    path = folder / "input.yaml"
    path.write_text(yaml.safe_dump(QUICK | changes))
    return str(path)


def audit(folder: Path, *arguments: str, **changes: object) -> int:
    source = ["--config", study_file(folder, **changes), "--out", str(folder / "out")]
    return main(["audit", *source, "--jobs", "1", *arguments])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, no_report: None) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    assert audit(folder) == 0
    return folder


@pytest.fixture
def finished(kept: Path, tmp_path: Path) -> Path:
    """A finished study of two methods and two seeds."""
    shutil.copytree(kept / "out", tmp_path / "out")
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_fewer_methods_or_seeds_take_nothing_away(finished: Path) -> None:
    records = read_records(finished / "out" / "records.parquet")
    for arguments in (["--methods", "lora"], ["--methods", "lora,bilora"], ["--seeds", "1"]):
        assert audit(finished, *arguments) == 0
        pd.testing.assert_frame_equal(read_records(finished / "out" / "records.parquet"), records)
        assert load_study(finished / "out" / "study.yaml").seeds == 2


def test_seeds_that_were_only_planned_are_not_counted(finished: Path) -> None:
    """A study that was begun with nine seeds, interrupted after two, and ended there."""
    settings = finished / "out" / "study.yaml"
    settings.write_text(yaml.safe_dump(yaml.safe_load(settings.read_text()) | {"seeds": 9}))
    assert audit(finished) == 0
    assert load_study(settings).seeds == 2
    assert read_json(finished / "out" / "claims.json")["design"] == "The number of seeds was fixed: 2."


def test_a_refused_command_changes_nothing(finished: Path) -> None:
    with (finished / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = files(finished / "out")
        assert audit(finished, "--seeds", "3") == 2
        run = next((finished / "out" / "runs").glob("lora-*"))
        assert main(["measure", str(run)]) == 2
        assert files(finished / "out") == before


def test_training_one_cell_leaves_the_studys_settings_alone(finished: Path) -> None:
    before = (finished / "out" / "study.yaml").read_bytes()
    arguments = ["--config", study_file(finished), "--out", str(finished / "out"), "--method", "lora", "--seed", "7"]
    assert main(["train", *arguments, "--train-size", "30"]) == 0
    assert (finished / "out" / "study.yaml").read_bytes() == before
    assert len(list((finished / "out" / "runs").glob("lora-seed7-n30-*"))) == 1


def test_every_file_says_what_made_it(finished: Path) -> None:
    provenance = pd.read_csv(finished / "out" / "provenance.csv")
    runs = [name for name in provenance["file"] if name.startswith("runs/")]
    assert len(runs) == 4 and len(provenance) == 4 + 4 * 2 + 1  # two measures a run, and the step cost
    (environment,) = read_json(finished / "out" / "environment.json")
    assert environment["made"] == "4 runs, 9 files of records" and environment["torch"] == torch.__version__
    # A run of another version stays that version's when the rest is made anew.
    path = finished / "out" / runs[0]
    description = read_json(path)
    write_json(path, description | {"environment": description["environment"] | {"commit": "0000000"}})
    seal_folder(path.parent)
    assert audit(finished, "--seeds", "3") == 0
    made = read_json(finished / "out" / "environment.json")
    assert sorted(one["made"] for one in made) == ["1 runs", "5 runs, 13 files of records"]


def test_other_notes_leave_the_run_and_its_measurements_alone(tmp_path: Path) -> None:
    def study(notes: int) -> dict[str, Any]:
        seeds = QUICK["measures"]["seeds"] | {"dynamics": 1}
        return QUICK["measures"] | {"dynamics": {"snapshots": 2, "notes": notes}, "seeds": seeds}

    assert audit(tmp_path, measures=study(1), seeds=1) == 0
    before = files(tmp_path / "out" / "runs") | files(tmp_path / "out" / "measurements")
    assert audit(tmp_path, measures=study(2), seeds=1) == 0
    after = files(tmp_path / "out" / "runs") | files(tmp_path / "out" / "measurements")
    new = {name for name in after.keys() - before.keys() if ".sums/" not in name}
    assert {name: after[name] for name in before} == before
    assert sorted(name.partition("/")[2].partition("-")[0] for name in new) == ["dynamics", "dynamics"]
    assert len(list((tmp_path / "out" / "recordings").iterdir())) == 2 * 2  # the first seed of two methods, twice
    records = read_records(tmp_path / "out" / "records.parquet")
    assert set(records.loc[records["measure"] == "ascent", "step"]) == {1, 2}


def test_run_folders_hold_no_pickle(tmp_path: Path) -> None:
    assert audit(tmp_path, methods={"full": {"learning_rate": 1e-3}}, seeds=1) == 0
    suffixes = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert not suffixes & {".bin", ".pt", ".pth", ".pkl"}


def test_a_diverged_run_is_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = {"lora": {"learning_rate": 0.003}, "bilora": {"learning_rate": 1e30, "rho": 0.05}}
    assert audit(tmp_path, methods=methods) == 0
    assert "diverged: bilora-seed0-n20: the training loss of the deployed weights is" in capsys.readouterr().err
    records = read_records(tmp_path / "out" / "records.parquet")
    assert records.loc[records["measure"] == "diverged", "method"].tolist() == ["bilora", "bilora"]
    assert set(records.loc[records["measure"] == "worst_case_rise", "method"]) == {"lora"}
    claims = {claim["name"]: claim for claim in read_json(tmp_path / "out" / "claims.json")["claims"]}
    assert claims["flatter_than_lora"]["n"] == 2 and "diverged" in claims["flatter_than_lora"]["test"]
    assert "Runs that diverged" in write_report(tmp_path / "out").read_text()
    runs = sorted(map(str, (tmp_path / "out" / "runs").iterdir()))
    quick = ["--what", "fit", "--radii", "0.1"]
    assert main(["compare", *runs, *quick]) == 0
    shown = capsys.readouterr().out
    assert "bilora-seed0-n20" in shown and "there is no minimum to measure" in shown and "| train loss |" in shown
    assert main(["compare", runs[0], *quick]) == 2
    assert "none is left" in capsys.readouterr().err


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [np.float64("nan"), float("inf"), 1.0], "b": (2,)})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, None, 1.0], "b": [2]}


def test_what_fails_beside_the_cells_leaves_the_records(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no clock here")

    monkeypatch.setattr(audit_module, "measure_cost", broken)
    for path in (finished / "out" / "measurements").glob("cost-*"):
        path.unlink()
    assert audit(finished) == 1
    assert [one["reason"] for one in read_json(finished / "out" / "failures.json")] == ["RuntimeError: no clock here"]
    assert "worst_case_rise" in set(read_records(finished / "out" / "records.parquet")["measure"])


def test_an_audit_of_which_everything_failed_still_ends(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> list[Any]:
        return [audit_module.Failure("everything", "it broke", "")]

    shutil.rmtree(finished / "out" / "measurements")
    monkeypatch.setattr(audit_module, "run_cells", broken)
    monkeypatch.setattr(audit_module, "measure_together", lambda *_: [])
    assert audit(finished) == 1
    assert "failed: everything: it broke" in capsys.readouterr().err
    assert read_json(finished / "out" / "claims.json")["claims"] == []


def test_barriers_interpolate_every_weight(tmp_path: Path) -> None:
    """Between whole fine-tuning, which moves the head and the biases, and LoRA, which does not."""
    methods = {"full": {"learning_rate": 3e-2}, "lora": {"learning_rate": 3e-2}}
    measures = QUICK["measures"] | {"surface": {"line_points": 3, "grid_points": 3, "path_points": 5}}
    assert audit(tmp_path, methods=methods, measures=measures, seeds=1) == 0
    study, folder = load_study(tmp_path / "out" / "study.yaml"), StudyFolder(tmp_path / "out")
    minima = [load_minimum(study, Cell(method, 0, 20), folder).model for method in methods]
    batches = study_task(study, Cell("lora", 0, 20)).batches("train")
    losses = []
    for share in np.linspace(0, 1, 5):
        mixed = {
            name: (1 - share) * a + share * minima[1].state_dict()[name] for name, a in minima[0].state_dict().items()
        }
        model = study_task(study, Cell("lora", 0, 20)).load_base(folder.base(study)).eval()
        model.load_state_dict(mixed)
        losses.append(EmpiricalRisk(model, batches).loss())
    records = read_records(tmp_path / "out" / "records.parquet")
    (barrier,) = records.loc[records["measure"] == "loss_barrier", "value"]
    straight = np.linspace(losses[0], losses[-1], 5)
    assert barrier == pytest.approx(max(0.0, float(np.max(np.array(losses) - straight))), abs=1e-5)


def test_what_a_study_does_not_record_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = next((finished / "out" / "runs").glob("lora-seed0*"))
    study = load_study(finished / "out" / "study.yaml")
    without = study.model_copy(update={"measures": study.measures.model_copy(update={"dynamics": None})})
    StudyFolder(finished / "out").write(without)
    assert main(["measure", str(run), "--what", "dynamics"]) == 2
    assert "set the study's measures.dynamics" in capsys.readouterr().err


def test_minima_of_one_name_stand_side_by_side(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twin = finished / "twin"
    shutil.copytree(finished / "out", twin)
    run = next((finished / "out" / "runs").glob("lora-seed0*"))
    places = [str(run), str(twin / "runs" / run.name)]
    assert main(["compare", *places, "--what", "fit", "--radii", "0.1"]) == 0
    shown = capsys.readouterr().out.splitlines()[0]
    assert str(run) in shown and str(twin / "runs" / run.name) in shown


@pytest.mark.parametrize("option", ["--seed", "--method", "--dry"])
def test_options_are_not_guessed(option: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        audit(tmp_path, option, "3")
    assert refused.value.code == 2 and not (tmp_path / "out").exists()


def test_a_dry_run_says_what_is_left(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(finished / "out")
    assert audit(finished, "--dry-run", "--seeds", "3") == 0
    assert "2  training" in capsys.readouterr().out
    assert files(finished / "out") == before


def test_a_study_grows_until_it_is_decided() -> None:
    seen: list[int] = []

    def judged(seeds: int) -> list[dict[str, Any]]:
        seen.append(seeds)
        verdict = "undecided" if seeds < 11 else "contradicted"
        return [{"family": "outcome", "verdict": verdict}, {"family": "controls", "verdict": "undecided"}]

    until_decided(judged, Stopping(max_seeds=20), 5)
    assert seen == [5, 8, 11]
    seen.clear()
    until_decided(judged, Stopping(max_seeds=20), 5, reached=8)
    assert seen == [8, 11]  # no look at a block that was only begun
    seen.clear()
    times = iter([0.0, 1800.0, 3700.0])
    until_decided(lambda seeds: judged(min(seeds, 5)), Stopping(max_seeds=20, hours=1.0), 5, clock=lambda: next(times))
    assert seen == [5, 5]


def test_looks_are_recorded_and_their_rule_is_kept(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looks = read_json(finished / "out" / "looks.json")
    assert looks["rule"] == "fixed" and [look["seeds"] for look in looks["looks"]] == [2]
    settings = (finished / "out" / "study.yaml").read_bytes()
    assert audit(finished, "--until-decided", "--max-seeds", "4", "--seeds", "3") == 2
    assert (finished / "out" / "study.yaml").read_bytes() == settings
    assert "looked at with a fixed number of seeds (2)" in capsys.readouterr().err
    assert audit(finished, "--seeds", "3") == 0
    document = read_json(finished / "out" / "claims.json")
    assert "extended after a look: 2, then 3 seeds" in document["design"]
    (finished / "out" / "looks.json").unlink()
    assert audit(finished, "--until-decided", "--max-seeds", "4") == 0
    looks = read_json(finished / "out" / "looks.json")
    assert looks["rule"] == "group-sequential" and looks["max_seeds"] == 4
    assert "Group-sequential: looks at" in read_json(finished / "out" / "claims.json")["design"]
    assert audit(finished, "--seeds", "5") == 2
    assert "go on with --until-decided --max-seeds 4" in capsys.readouterr().err


def test_the_budget_of_seeds_must_hold_the_studys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(tmp_path, "--until-decided", "--max-seeds", "1") == 2
    assert "--max-seeds: expected at least the study's 2" in capsys.readouterr().err
    assert audit(tmp_path, "--max-seeds", "5") == 2
    assert "belongs to --until-decided" in capsys.readouterr().err


def test_damaged_files_are_found_and_made_anew(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = finished / "out"
    before = read_records(out / "records.parquet")
    (weights,) = out.glob("runs/bilora-seed1-*/primary/adapter_model.safetensors")
    flipped = bytearray(weights.read_bytes())
    original = bytes(flipped)
    flipped[-5] ^= 1
    weights.write_bytes(flipped)
    (torn,) = out.glob("measurements/lora-seed0-*/sharpness-*.parquet")
    torn.write_bytes(torn.read_bytes()[:-100])
    search = next(iter(out.glob("measurements/lora-seed1-*/worst_case-*.safetensors")))
    search.write_bytes(b"\0" * search.stat().st_size)
    (base,) = out.glob("base/*/config.json")
    base.unlink()
    assert audit(finished) == 0
    said = capsys.readouterr()
    for path in (weights.parents[1], torn, search, base.parent):
        assert f"damaged, made anew: {path.relative_to(out)}" in said.err
    assert said.err.count("damaged, made anew") == 4
    assert weights.read_bytes() == original and base.is_file()
    after = read_records(out / "records.parquet")
    timed = before["measure"].str.contains("seconds")
    pd.testing.assert_frame_equal(after[~timed].drop(columns="seconds"), before[~timed].drop(columns="seconds"))
    assert len(list((out / "damaged").iterdir())) == 4
    assert audit(finished) == 0
    said = capsys.readouterr()
    assert "done already" in said.out and "damaged" not in said.err


def test_a_run_folder_can_be_checked_by_hand(finished: Path) -> None:
    """The checksums are those of coreutils."""
    for folder in (finished / "out" / "runs").iterdir():
        done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=False)
        assert done.returncode == 0


def test_data_that_changed_are_refused_before_anything_of_the_study(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    reviews()[["text", "label"]].to_csv(data, index=False)
    task = {"name": "text_classification", "model": str(bert(tmp_path / "model")), "data": str(data)}
    adapters = {"r": 2, "target_modules": ["query"], "modules_to_save": ["classifier"]}
    study = load_study(Path(study_file(tmp_path, task=task, adapters=adapters)))
    folder = StudyFolder(tmp_path / "out")
    refuse_changed_data(study, folder)  # there is nothing yet
    prepare(study, folder)
    refuse_changed_data(study, folder)
    reviews(seed=5)[["text", "label"]].to_csv(data, index=False)
    assert audit(tmp_path, task=task, adapters=adapters) == 2
    assert audit(tmp_path, "--dry-run", task=task, adapters=adapters) == 2
    assert not (folder.root / "looks.json").exists() and not folder.runs.exists()
