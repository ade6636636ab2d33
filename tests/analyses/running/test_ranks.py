"""Processes that torchrun starts measure what one process measures, and leave one set of files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from analyses.cli import main
from analyses.records.integrity import is_damaged
from tests.analyses.mini import QUICK

pytestmark = pytest.mark.long

CLOCKS = ["train_step_seconds", "step_seconds"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run without measurements."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "study.yaml").write_text(yaml.safe_dump(QUICK))
    asked = ["--config", str(folder / "study.yaml"), "--out", str(folder / "out"), "--method", "bilora"]
    assert main(["train", *asked]) == 0
    return next((folder / "out" / "runs").iterdir())


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "analyses.cli"]
    alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | alone,
    )


def test_two_ranks_measure_as_one(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "out"
    shutil.copytree(run.parent.parent, other)
    names = ["generalization", "sharpness", "curvature"]
    assert main(["measure", str(run), "--what", *names, "--csv", str(tmp_path / "one.csv")]) == 0
    done = torchrun("measure", other / "runs" / run.name, "--what", *names, "--csv", tmp_path / "two.csv")
    assert done.returncode == 0, done.stderr
    one, two = (pd.read_csv(tmp_path / f"{name}.csv").query("measure not in @CLOCKS") for name in ("one", "two"))
    assert list(one["measure"]) == list(two["measure"]) and len(one) > 15
    # A rise of 0.003 is a difference of float32 losses of 2.3 nats: it agrees to 1e-6 of these. What is made of rises
    # by division agrees to as much of the rise.
    of_rises = one["measure"].str.contains("gap|share|effective_examples|residual")
    pd.testing.assert_series_equal(one["value"][~of_rises], two["value"][~of_rises], rtol=1e-6, atol=2e-6)
    pd.testing.assert_series_equal(one["value"][of_rises], two["value"][of_rises], rtol=1e-3, atol=1e-3)
    files = list((other / "measurements" / run.name).glob("*.*"))
    assert files and not any(is_damaged(path) for path in files)


def test_other_commands_are_refused_under_torchrun(run: Path) -> None:
    done = torchrun("audit", "--preset", "digits", "--out", run.parent.parent / "elsewhere")
    assert "torchrun: only 'measure' shares its work among ranks" in done.stderr
    assert not (run.parent.parent / "elsewhere").exists()
