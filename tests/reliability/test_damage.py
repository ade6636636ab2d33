"""What a disk, a copy or a kill has damaged: found by every command, made anew, and never measured."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from analyses.records import read_records, write_sealed
from analyses.records.atomic import write_atomically
from analyses.records.files import new_folder, remove_leftovers
from analyses.records.integrity import SUMS, is_damaged
from analyses.refusals import INTERRUPTED, guarded
from analyses.running.damage import ASIDE, set_damaged_measurements_aside
from analyses.running.engines import SequentialEngine
from analyses.running.executors import run_cells
from analyses.running.preparing import locked
from analyses.running.progress import ProgressFile
from analyses.running.single import measured
from analyses.running.tuning import tune
from analyses.study import Cell, Study, StudyError, StudyFolder, load_study
from tests.analyses.mini import QUICK, landscape

CELL = Cell("lora", 0, 20)
ALONE = ("--executor", "sequential")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory, no_report: None) -> Path:
    """A study of one seed that was once audited at two."""
    place = tmp_path_factory.mktemp("damage")
    (place / "study.yaml").write_text(
        yaml.safe_dump(QUICK | {"seeds": 1, "methods": {"lora": QUICK["methods"]["lora"]}})
    )
    done = landscape("audit", "--config", place / "study.yaml", "--out", place / "out", "--seeds", 2, *ALONE)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def place(audited: Path, tmp_path: Path) -> Path:
    shutil.copytree(audited, tmp_path / "study")
    return tmp_path / "study"


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def the(pattern: str, root: Path) -> Path:
    (found,) = root.glob(pattern)
    return found


def test_damaged_weights_are_not_measured_and_damaged_records_not_believed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = the("out/runs/lora-seed0-*", place)
    records = the("out/measurements/lora-seed0-*/generalization-*.parquet", place)
    right = records.read_bytes()
    spoil(records)
    found = measured(run, ["generalization"])
    assert "damaged, made anew: measurements/lora-seed0" in capsys.readouterr().err
    assert len(found) and not is_damaged(records) and (place / "out" / ASIDE).is_dir()
    assert read_records(records).drop(columns="seconds").equals(found.drop(columns="seconds"))
    records.write_bytes(right)
    spoil(run / "primary" / "adapter_model.safetensors")
    for command in (["measure", run, "--what", "generalization"], ["compare", run, "--what", "fit"]):
        done = landscape(*command)
        assert done.returncode == 2
        assert f"{run.name} is damaged, its checksums differ" in done.stderr


def test_what_is_damaged_of_other_seeds_is_made_anew_too(place: Path) -> None:
    once = read_records(place / "out" / "records.parquet")
    spoil(the("out/runs/lora-seed1-*/primary/adapter_model.safetensors", place))
    the("out/measurements/lora-seed0-*/sharpness-*.parquet", place).write_bytes(b"")
    done = landscape("audit", "--config", place / "study.yaml", "--out", place / "out", *ALONE)
    assert done.returncode == 0 and done.stderr.count("damaged, made anew") == 2
    again = read_records(place / "out" / "records.parquet")
    clocks = again["measure"].str.contains("seconds")
    assert again[~clocks].drop(columns="seconds").equals(once[~clocks].drop(columns="seconds"))


def test_settings_that_were_lost_are_written_again(place: Path) -> None:
    (place / "out" / "study.yaml").unlink()
    (place / "out" / ".tmp-study-x.yaml").write_text("nam")
    done = landscape("audit", "--config", place / "study.yaml", "--out", place / "out")
    assert done.returncode == 0 and "All 1 cells were done already" in done.stdout
    assert load_study(place / "out" / "study.yaml").seeds == 2  # whose runs are there
    assert not list((place / "out").glob(".tmp-*"))


def test_clocks_that_jump_change_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = read_records(place / "out" / "records.parquet")
    for path in (place / "out").glob("measurements/lora-seed0-*/**/sharpness-*"):
        path.unlink()  # to be measured anew
    jumps = itertools.cycle([4e9, 0.0, 1e9])  # years ahead, and back
    for path in (place / "out").rglob("*"):
        os.utime(path, (moment := next(jumps), moment))
    monkeypatch.setattr("time.time", lambda: next(jumps))
    done = landscape("audit", "--config", place / "study.yaml", "--out", place / "out", *ALONE)
    assert done.returncode == 0 and "done already" not in done.stdout and "damaged" not in done.stderr
    again = read_records(place / "out" / "records.parquet")
    clocks = again["measure"].str.contains("seconds")
    assert again[~clocks].drop(columns="seconds").equals(once[~clocks].drop(columns="seconds"))
    assert (again["seconds"].dropna() >= 0).all()


def test_measure_takes_the_settings_of_today(place: Path) -> None:
    study = load_study(place / "out" / "study.yaml")
    changed = study.model_dump() | {"claims": study.claims.model_dump() | {"rho": 0.2}}
    changed["measures"]["worst_case"]["radii"] = [0.2]
    StudyFolder(place / "out").write(Study.model_validate(changed))
    found = measured(the("out/runs/lora-seed0-*", place), ["sharpness"])
    assert set(found.loc[found["measure"] == "worst_case_rise", "rho"]) == {0.2}


def test_a_report_waits_for_who_is_at_work(place: Path) -> None:
    before = (place / "out" / "claims.json").stat().st_mtime_ns
    with locked(StudyFolder(place / "out")):
        done = landscape("report", place / "out")
    assert done.returncode == 2 and "DIR: another process is at work" in done.stderr
    assert (place / "out" / "claims.json").stat().st_mtime_ns == before


def test_a_grid_that_was_cut_is_tried_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    column = {"learning_rate": 0.003, "optimizer": {"name": "SGD", "options": {"momentum": 0.9}}}
    tuning = {"seeds": [1001], "max_train_loss": 10.0, "learning_rate": {"lora": [1e-3, 3e-3]}}
    study = Study.model_validate(QUICK | {"methods": {"lora": column}, "tuning": tuning})
    folder = StudyFolder(place / "grid")
    table, failures = tune(study, folder, engine=SequentialEngine())
    assert not failures and len(table) == 2
    first, second = sorted((folder.root / "grid").glob("*.json"))
    first.write_text("[]")
    spoil(second)
    again, failures = tune(study, folder, engine=SequentialEngine())
    assert not failures and again.equals(table)
    assert capsys.readouterr().err.count("damaged, made anew: grid/") == 2


@pytest.mark.parametrize("damage", [Path.unlink, spoil])
def test_vectors_that_are_lost_take_their_records_along(damage: Callable[[Path], None], tmp_path: Path) -> None:
    study, folder = Study.model_validate(QUICK), StudyFolder(tmp_path)
    place = folder.measurements(study, CELL)
    for name in ("curvature-1", "angles-2"):
        write_sealed(place / f"{name}.parquet", lambda path: path.write_text("records"))
        write_sealed(place / f"{name}.safetensors", partial(save_file, {"v": torch.ones(3)}))
    damage(place / "curvature-1.safetensors")
    assert set_damaged_measurements_aside(study, folder, CELL)
    assert sorted(path.name for path in place.glob("[!.]*")) == ["angles-2.parquet", "angles-2.safetensors"]
    assert not set_damaged_measurements_aside(study, folder, CELL)


@pytest.mark.parametrize("seal", ["", "\n", "\x80".encode("latin-1")])
def test_a_seal_that_says_nothing_is_damage(seal: str | bytes, tmp_path: Path) -> None:
    with new_folder(tmp_path / "run") as temporary:
        (temporary / "weights").write_text("1")
    assert not is_damaged(tmp_path / "run")
    (tmp_path / "run" / SUMS).write_bytes(seal if isinstance(seal, bytes) else seal.encode())
    assert is_damaged(tmp_path / "run")


def test_two_that_finish_one_folder_agree(tmp_path: Path) -> None:
    with new_folder(tmp_path / "run") as ours:
        (ours / "weights").write_text("1")
        with new_folder(tmp_path / "run") as theirs:
            (theirs / "weights").write_text("1")
    assert (tmp_path / "run" / "weights").read_text() == "1" and len(list(tmp_path.iterdir())) == 1


def test_what_killed_commands_left_is_removed(tmp_path: Path) -> None:
    class KilledError(BaseException):
        pass

    def killed(path: Path) -> None:
        shutil.copy(path, path.with_name(f"{path.name}.left{path.suffix}"))
        raise KilledError

    for name in ("study.yaml", "measurements/cost.parquet", "measurements/run/fit.parquet"):
        with pytest.raises(KilledError):
            write_atomically(tmp_path / name, killed)
    (tmp_path / "runs" / ".tmp-x").mkdir(parents=True)
    assert len([path for path in tmp_path.rglob(".tmp-*")]) == 4
    remove_leftovers(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir() or path.name.startswith(".tmp-")]


def leave(folder: StudyFolder, item: str, progress: ProgressFile) -> None:
    shutil.rmtree(folder.progress, ignore_errors=True)
    progress.stage("train")(1, 2)  # nowhere to write
    if item == "leaves":
        sys.exit(3)


def test_a_cell_that_leaves_takes_no_other_along(tmp_path: Path) -> None:
    failures = run_cells(["leaves", "stays"], leave, StudyFolder(tmp_path), SequentialEngine())
    assert [(failure.cell, failure.reason) for failure in failures] == [("leaves", "SystemExit: 3")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_batch_system_ends_a_command_as_an_interrupt_does(number: signal.Signals) -> None:
    def command() -> int:
        os.kill(os.getpid(), number)
        signal.pause()
        return 0

    before = signal.getsignal(number)
    signal.signal(number, signal.SIG_DFL)
    try:
        assert guarded(command) == INTERRUPTED
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(StudyError, match=r"--out: cannot lock .*Function not implemented"),
        locked(StudyFolder(tmp_path)),
    ):
        pass
