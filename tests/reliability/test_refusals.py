"""A disk that fills: what is finished stays, nothing torn is left, and the same command goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from analyses.cli import main
from analyses.records import read_json, read_records
from tests.analyses.running.test_audit import study_file

pytestmark = pytest.mark.long


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine lets no test mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # idle workers may still hold it


def enlarge(place: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)


def test_a_full_disk_ends_a_command_in_words_and_loses_nothing(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["audit", "--config", study_file(tmp_path), "--out", str(small_disk / "out"), "--jobs", "1"]
    for size in (None, "700k"):  # too small for the base model, then for the records of all cells
        if size is not None:
            enlarge(small_disk, size)
        assert main(command) == 3
        said = capsys.readouterr().err
        assert "No space left on device" in said and "goes on from there" in said
        assert "Traceback" not in said
    finished = {path: path.stat().st_mtime_ns for path in small_disk.glob("out/runs/*/run.json")}
    assert finished
    enlarge(small_disk, "60m")
    assert main(command) == 0
    assert (
        finished.items() <= {path: path.stat().st_mtime_ns for path in small_disk.glob("out/runs/*/run.json")}.items()
    )
    assert read_json(small_disk / "out" / "failures.json") == []
    assert len(read_records(small_disk / "out" / "records.parquet")["run"].dropna().unique()) == 4
    assert not [path for path in small_disk.rglob("*") if path.name.startswith((".tmp-", ".records-", ".report-"))]


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "file"
    place.touch()
    assert main(["audit", "--config", study_file(tmp_path), "--out", str(place / "out")]) == 2
    assert "--out: cannot write to" in capsys.readouterr().err
