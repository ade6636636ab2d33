"""Every engine does all items, says which failed, and leaves the records that any other leaves."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from analyses.cli import main
from analyses.records import read_records
from analyses.records.files import new_folder
from analyses.records.integrity import is_damaged, write_sealed
from analyses.running import engines
from analyses.running.engines import LocalEngine, RayEngine, SequentialEngine, SlurmEngine, engine_of, on_ray
from analyses.running.engines.parcels import packed, unpack
from analyses.running.executors import Engine, run_cells
from analyses.running.progress import ProgressFile
from analyses.study import StudyError, StudyFolder
from tests.analyses.mini import QUICK

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[3]


def leave_files(folder: StudyFolder, item: str, progress: ProgressFile) -> None:
    """What a cell does: a run folder, and a sealed file of measurements made from it and the base model."""
    if item == "broken":
        raise ValueError("no such cell")
    if item == "deadly":
        os._exit(7)
    with new_folder(folder.runs / f"{item}-0") as temporary:
        (temporary / "weights").write_text(item)
    text = (folder.root / "base" / "model").read_text() + (folder.runs / f"{item}-0" / "weights").read_text()
    write_sealed(folder.root / "measurements" / f"{item}-0" / "fit", lambda path: path.write_text(text))


def share_memory(folder: StudyFolder, item: str, progress: ProgressFile) -> None:
    """What a cell does on a GPU that others are on: large ones find no memory at first, and must be alone later."""
    refused = folder.root / f"refused-{item}"
    if item != "c" and not refused.exists():
        refused.touch()
        raise torch.OutOfMemoryError("beside others")
    at_work = folder.root / f"at-work-{item}"
    at_work.touch()
    time.sleep(0.2)
    assert [path.name for path in folder.root.glob("at-work-*")] == [at_work.name]
    at_work.unlink()
    if item == "huge":
        raise torch.OutOfMemoryError("too large")
    (folder.root / f"done-{item}").touch()


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    (tmp_path / "out" / "base").mkdir(parents=True)
    (tmp_path / "out" / "base" / "model").write_text("base ")
    return StudyFolder(tmp_path / "out")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one Ray cluster on this machine, and the second of them."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
        yield cluster, second
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def assert_done(folder: StudyFolder, items: list[str]) -> None:
    for item in items:
        assert (folder.root / "measurements" / f"{item}-0" / "fit").read_text() == f"base {item}"
        assert not is_damaged(folder.runs / f"{item}-0")
        assert not is_damaged(folder.root / "measurements" / f"{item}-0" / "fit")
    assert sorted(path.name for path in folder.runs.iterdir()) == sorted(f"{item}-0" for item in items)


@pytest.mark.parametrize("engine", [SequentialEngine(), LocalEngine(2), SlurmEngine(2, 1, 0, {"cluster": "local"})])
def test_all_items_are_done_and_one_that_fails_is_named(engine: Engine, folder: StudyFolder) -> None:
    failures = run_cells(["a", "broken", "b"], leave_files, folder, engine)
    assert [(failure.cell, failure.reason) for failure in failures] == [("broken", "ValueError: no such cell")]
    assert_done(folder, ["a", "b"])
    assert not (folder.root / ".slurm").exists()


def stay_a_while(folder: StudyFolder, item: str, progress: ProgressFile) -> None:
    began = time.time()
    time.sleep(0.5)
    (folder.root / f"time-{item}").write_text(f"{began} {time.time()}")


def test_slurm_on_this_machine_keeps_to_the_jobs_at_a_time(folder: StudyFolder) -> None:
    assert not run_cells(["a", "b"], stay_a_while, folder, SlurmEngine(1, 1, 0, {"cluster": "local"}))
    times = sorted(tuple(map(float, path.read_text().split())) for path in folder.root.glob("time-*"))
    assert len(times) == 2
    assert all(end <= begin for (_, end), (begin, _) in pairwise(times))


@contextmanager
def commands_of_slurm(place: Path, **scripts: str) -> Iterator[None]:
    """Shell scripts by the names of Slurm's commands, first on the path."""
    place.mkdir()
    for name, script in scripts.items():
        (place / name).write_text(f"#!/bin/sh\n{script}\n")
        (place / name).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(place), prepend=os.pathsep)
        yield


def test_slurm_gives_jobs_a_day_and_its_refusals_are_said(folder: StudyFolder, tmp_path: Path) -> None:
    left = folder.root / ".slurm" / "jobs"
    left.parent.mkdir()
    left.write_text("17_0\n17_1")  # of a command that was killed
    scripts = {
        "srun": "exit 0",
        "sbatch": f'cat "$1" > {tmp_path}/script; echo "invalid partition specified: gpu" >&2; exit 1',
        "scancel": f'echo "$@" > {tmp_path}/cancelled',
    }
    refused = pytest.raises(StudyError, match=r"--slurm: Slurm does not take the jobs: .*invalid partition")
    with commands_of_slurm(tmp_path / "bin", **scripts), refused:
        run_cells(["a"], leave_files, folder, engine_of("slurm", slurm=["slurm_partition=gpu"]))
    assert (tmp_path / "cancelled").read_text().split() == ["17_0", "17_1"]
    assert "#SBATCH --time=1440" in (tmp_path / "script").read_text()
    assert not left.parent.exists()


@pytest.mark.parametrize("engine", [LocalEngine(2), SlurmEngine(2, 1, 0, {"cluster": "local"})])
def test_a_worker_that_dies_takes_no_other_along(engine: Engine, folder: StudyFolder) -> None:
    failures = run_cells(["a", "deadly", "b"], leave_files, folder, engine)
    assert [failure.cell for failure in failures] == ["deadly"]
    assert_done(folder, ["a", "b"])


def test_items_that_find_no_memory_beside_others_are_done_alone(folder: StudyFolder) -> None:
    failures = run_cells(["large-a", "large-b", "huge", "c"], share_memory, folder, LocalEngine(3))
    assert [(failure.cell, failure.reason) for failure in failures] == [("huge", "OutOfMemoryError: too large")]
    done = {path.name for path in folder.root.glob("done-*")}
    assert done == {"done-large-a", "done-large-b", "done-c"}


def test_ray_does_the_same_with_and_without_a_shared_folder(
    folder: StudyFolder, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = RayEngine(None, 1, 0, retries=0)
    with new_folder(folder.runs / "b-0") as temporary:  # begun before: only its measurements are missing
        (temporary / "weights").write_text("b")
    failures = run_cells(["a", "broken"], leave_files, folder, engine)

    @contextmanager
    def unseen(folder: StudyFolder) -> Iterator[tuple[str, str]]:
        yield str(folder.root / "elsewhere"), "token"

    monkeypatch.setattr(on_ray, "_marked", unseen)
    failures += run_cells(["c", "b", "deadly"], leave_files, folder, engine)
    assert [failure.cell for failure in failures] == ["broken", "deadly"]
    assert failures[0].reason == "ValueError: no such cell" and failures[1].reason.startswith("the task was lost")
    assert_done(folder, ["a", "b", "c"])
    assert not [path for path in folder.root.iterdir() if path.name.startswith((".tmp", ".shared"))]


def test_what_no_node_has_is_refused(folder: StudyFolder, cluster: Any) -> None:
    with pytest.raises(
        StudyError, match=r"--gpus-per-cell: .*got 1 CPUs and 0.5 GPUs; the nodes have 1 CPUs and 0 GPUs"
    ):
        run_cells(["a"], leave_files, folder, RayEngine(None, 1, 0.5))


def test_a_node_that_is_killed_loses_nothing(tmp_path: Path, cluster: Any) -> None:
    """A study on both nodes, of which the second is killed in the middle."""
    import ray

    both, second = cluster
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(QUICK))
    assert main(["audit", "--config", str(config), "--out", str(tmp_path / "alone")]) == 0
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2

    def kill() -> None:
        while len(list((tmp_path / "out").glob("runs/*-seed*"))) < 2:  # two of four cells are trained
            time.sleep(0.05)
        both.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    assert main(["audit", "--config", str(config), "--out", str(tmp_path / "out"), "--executor", "ray"]) == 0
    killer.join(timeout=60)
    assert not killer.is_alive()
    alone, found = (read_records(tmp_path / name / "records.parquet") for name in ("alone", "out"))
    clocks = alone["measure"].isin(["train_step_seconds", "step_seconds"])
    columns = [column for column in alone if column != "seconds"]
    pd.testing.assert_frame_equal(alone[~clocks][columns], found[~clocks][columns])


def test_parcels_bring_whole_folders_and_leave_what_is_there(folder: StudyFolder, tmp_path: Path) -> None:
    run_cells(["a", "b"], leave_files, folder, SequentialEngine())
    other = tmp_path / "other"
    unpack(packed(folder.root, ["base", "runs", "measurements", "absent"]), other)
    assert_done(StudyFolder(other), ["a", "b"])
    (other / "base" / "model").write_text("mine")
    unpack(packed(folder.root, ["base"]), other)
    assert (other / "base" / "model").read_text() == "mine"
    assert not list(other.glob(".tmp-*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "joblib", "jobs": 0}, "--jobs: expected at least 1"),
        ({"name": "sequential", "jobs": 3}, "--executor sequential does one cell"),
        ({"name": "joblib", "gpus": 1}, "--gpus-per-cell: is reserved on a cluster"),
        ({"name": "joblib", "cpus": 2}, "--cpus-per-cell: is reserved on a cluster"),
        ({"name": "ray", "cpus": 0}, "--cpus-per-cell: expected at least 1"),
        ({"name": "ray", "gpus": -1}, "--gpus-per-cell: expected a number"),
        ({"name": "slurm", "gpus": 0.5}, "Slurm reserves whole GPUs"),
        ({"name": "ray", "slurm": ["a=1"]}, "--slurm: belongs to --executor slurm"),
        ({"name": "slurm", "slurm": ["timeout"]}, "--slurm: expected KEY=VALUE"),
        ({"name": "slurm", "slurm": ["cluster=moon"]}, "cluster is one of"),
    ],
)
def test_options_that_an_engine_has_no_use_for_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        engine_of(**options)


def test_slurm_that_is_not_here_and_unknown_settings_are_said_at_once(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StudyError, match="no sbatch here"):
        engine_of("slurm")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    for name, extra in (("ray", "cluster"), ("slurm", "slurm")):
        with pytest.raises(StudyError, match=rf"is not installed; pip install 'bilora-landscape\[{extra}\]'"):
            engine_of(name)
    with pytest.raises(StudyError, match="--slurm: "):
        run_cells(["a"], leave_files, folder, SlurmEngine(None, 1, 0, {"cluster": "local", "wishes": 3}))
    assert not (folder.root / ".slurm").exists()
