"""Commands killed at random moments: nothing torn is left, nothing finished is lost, and the end is the same.

``KILLS=50 pytest tests/reliability/test_kills.py`` kills every command that often; by default twice.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from analyses.records import read_records
from analyses.records.integrity import SUMS, is_damaged
from tests.analyses.mini import QUICK

KILLS = int(os.environ.get("KILLS", "2"))
pytestmark = [pytest.mark.long, pytest.mark.timeout(max(300, 120 * KILLS))]
CLOCKS = ["train_step_seconds", "step_seconds"]
TUNED = QUICK | {
    "tuning": {
        "seeds": [1001],
        "max_train_loss": 10.0,
        "learning_rate": {"lora": [1e-3, 3e-3], "bilora": [3e-3]},
        "rho": {"bilora": [0.05]},
        "auxiliary_lr_ratio": {"bilora": [1.0]},
    }
}


COMPARED = {
    "radii": [0.1],
    "balls": ["l2"],
    "what": ["fit", "sharpness"],
    "worst_case": {"steps": 2, "restarts": 1, "screened": 4, "max_passes": 4},
}


def command(name: str, folder: Path, out: Path) -> list[str]:
    study = ["--config", str(folder / "study.yaml"), "--out", str(out)]
    minima = [str(place) for place in sorted((folder / "once" / "runs").glob("*-seed0-*"))]
    return {
        "audit": ["audit", *study],
        "tune": ["tune", *study],
        "compare": ["compare", *minima, "--settings", str(folder / "compared.yaml"), "--out", str(out)],
        "report": ["report", str(out)],
    }[name]


def run(arguments: list[str], kill_after: float | None = None) -> bool:
    """Whether a command ended by itself; killed with its workers, it does not."""
    process = subprocess.Popen(
        [sys.executable, "-m", "analyses.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert process.wait(timeout=kill_after or 240) == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    return True


def assert_whole(out: Path) -> None:
    """No file under its own name is torn."""
    for sums in out.rglob(SUMS):
        if not sums.parent.name.startswith(".tmp-"):
            assert not is_damaged(sums.parent)
    for path in out.rglob("[!.]*.parquet"):
        read_records(path)
        assert not is_damaged(path)
    for path in out.rglob("[!.]*.json"):
        if not any(part.startswith(".tmp-") for part in path.parts):
            json.loads(path.read_text())


def finished(out: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns for path in [*out.glob("runs/*/run.json"), *out.glob("measurements/*/*.parquet")]
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A folder with a study, its audit in ``once``, a comparison in ``compared``, and how long each command takes."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "study.yaml").write_text(yaml.safe_dump(TUNED))
    (folder / "compared.yaml").write_text(yaml.safe_dump(COMPARED))
    took = {}
    for name in ("audit", "tune", "report", "compare"):
        began = time.monotonic()
        assert run(command(name, folder, folder / ("compared" if name == "compare" else "once")))
        took[name] = time.monotonic() - began
    return folder, took


def killed(name: str, folder: Path, took: dict[str, float]) -> Path:
    """Where a command ended that was killed `KILLS` times; where it had nothing left to do, another is begun."""
    moments = random.Random(0)
    out, done = folder / name, {}
    for _ in range(KILLS):
        if run(command(name, folder, out), kill_after=moments.uniform(0.1, took[name])):
            done, out = {}, folder / f"{name}-{time.monotonic_ns()}"
            continue
        if out.exists():
            assert_whole(out)
            assert done.items() <= finished(out).items()
            done = finished(out)
    assert run(command(name, folder, out))
    return out


def assert_equal_records(once: Path, found: Path) -> None:
    """But for clocks, which measure the machine."""
    right, records = (read_records(place / "records.parquet") for place in (once, found))
    clocks = right["measure"].isin(CLOCKS)
    columns = [column for column in right if column != "seconds"]
    pd.testing.assert_frame_equal(right[~clocks][columns], records[~clocks][columns], check_exact=True)


def test_a_comparison_killed_again_and_again_ends_as_one_that_was_not(whole: tuple[Path, dict[str, float]]) -> None:
    out = killed("compare", *whole)
    assert_equal_records(whole[0] / "compared", out)
    assert not list(out.glob("*/.tmp-*"))


def test_an_audit_killed_again_and_again_ends_as_one_that_was_not(whole: tuple[Path, dict[str, float]]) -> None:
    folder, took = whole
    out = killed("audit", folder, took)
    assert_equal_records(folder / "once", out)
    stored = list((out / "runs").rglob("*.safetensors"))
    assert stored
    for weights in stored:
        assert weights.read_bytes() == (folder / "once" / weights.relative_to(out)).read_bytes()
    assert not list(out.glob("*/.tmp-*"))


@pytest.mark.parametrize(("name", "place", "file"), [("tune", "tune", "tuning.csv"), ("report", "once", "claims.json")])
def test_other_commands_end_the_same(whole: tuple[Path, dict[str, float]], name: str, place: str, file: str) -> None:
    folder, took = whole
    moments, out = random.Random(1), folder / place
    right = (folder / "once" / file).read_bytes()
    for _ in range(KILLS):
        run(command(name, folder, out), kill_after=moments.uniform(0.1, took[name]))
        assert_whole(out)
    assert run(command(name, folder, out))
    assert (out / file).read_bytes() == right
