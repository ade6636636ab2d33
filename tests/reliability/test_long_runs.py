"""Many cells leave memory, files and processes as they were; an interruption ends all workers.

``CELLS=200 pytest tests/reliability/test_long_runs.py`` works on as many cells; by default on 12.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from analyses.running.audit import run_cell
from analyses.running.engines import SequentialEngine
from analyses.running.executors import run_cells
from analyses.running.preparing import prepare
from analyses.running.progress import ProgressFile
from analyses.study import Cell, Study, StudyFolder
from tests.analyses.mini import QUICK

CELLS = int(os.environ.get("CELLS", "12"))
pytestmark = [pytest.mark.long, pytest.mark.timeout(max(300, 5 * CELLS))]


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def children(process: int) -> list[int]:
    """Processes whose ancestor a process is, by /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        parents.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, left = [], [process]
    while left:
        left += (own := parents.get(left.pop(), []))
        found += own
    return found


def test_memory_and_files_stay_flat_over_many_cells(tmp_path: Path) -> None:
    study, folder = Study.model_validate(QUICK | {"seeds": (CELLS + 1) // 2}), StudyFolder(tmp_path)
    prepare(study, folder)
    memory: list[int] = []

    def work(folder: StudyFolder, cell: Cell, progress: ProgressFile) -> None:
        run_cell(study, folder, cell, progress)
        memory.append(resident())

    cells = list(study.cells())
    assert run_cells(cells[:2], partial(run_cell, study), folder, SequentialEngine()) == []
    files = open_files()
    assert run_cells(cells[2:], work, folder, SequentialEngine()) == []
    warm = len(memory) // 3
    early, late = statistics.median(memory[warm : 2 * warm]), statistics.median(memory[-warm:])
    assert late <= 1.05 * early, f"{early / 2**20:.0f} MiB became {late / 2**20:.0f} over {len(memory)} cells"
    assert open_files() <= files
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-")]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc")
def test_an_interruption_ends_the_workers_within_five_seconds(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(QUICK | {"seeds": 40}))
    command = ["audit", "--config", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), "--jobs", "2"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    process = subprocess.Popen(
        [sys.executable, "-m", "analyses.cli", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    began = time.monotonic()
    while len(list((tmp_path / "out").glob("runs/*-seed*"))) < 2:
        assert process.poll() is None and time.monotonic() - began < 120
        time.sleep(0.1)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(signal.SIGINT)
    interrupted = time.monotonic()
    _, said = process.communicate(timeout=30)
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() - interrupted < 30:
        time.sleep(0.05)
    took = time.monotonic() - interrupted
    assert process.returncode == 130 and "Traceback" not in said
    assert took < 5, f"{took:.1f} s"
