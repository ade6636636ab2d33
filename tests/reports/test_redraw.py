"""Single figures once more, by command and without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analyses import launch
from analyses.records import write_json, write_records
from reports import redraw_command
from reports.redraw import redraw
from tests.reports.conftest import made_up_records, write_study


@pytest.fixture
def study(claims: dict[str, Any], tmp_path: Path) -> Path:
    return write_study(tmp_path, made_up_records(("lora", "bilora"), num_seeds=2), claims, [])


def test_only_what_is_asked_for_is_written(study: Path) -> None:
    paths = redraw(study, ["forest", "eigenvalues"], ["svg"])
    assert [path.name for path in paths] == ["forest.svg", "eigenvalues.svg"]
    found = {path.name for path in (study / "figures").iterdir()}
    assert found == {"forest.svg", "eigenvalues.svg", "forest.csv", "eigenvalues.csv"}


def test_figures_of_a_comparison_are_drawn_again(tmp_path: Path) -> None:
    records = made_up_records(("lora", "bilora"), num_seeds=1).assign(ball="l2")
    write_json(tmp_path / "comparison.json", {"names": ["lora", "bilora"], "rho": 0.1, "failures": {}, "notes": []})
    with pytest.raises(ValueError, match=r"holds no records.parquet; run 'landscape compare' first"):
        redraw(tmp_path, ["all"])
    write_records(records, tmp_path / "records.parquet")
    assert [path.name for path in redraw(tmp_path, ["rises"], ["svg", "png"])] == ["rises.svg", "rises.png"]
    with pytest.raises(ValueError, match=r"--figures: expected some of rises, eigenvalues .*; got 'forest'"):
        redraw(tmp_path, ["forest"])


@pytest.mark.parametrize(
    ("names", "formats", "message"),
    [
        (["fores"], ["svg"], r"--figures: expected some of forest, .* \(or all\), .*; got 'fores'"),
        (["dynamics"], ["svg"], "--figures: expected some of"),
        (["forest"], ["gif"], "--format: expected some of pdf, svg, png, got 'gif'"),
    ],
)
def test_unknown_names_are_refused(study: Path, names: list[str], formats: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        redraw(study, names, formats)


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no records.parquet; run 'landscape audit' first"):
        redraw(tmp_path, ["all"])


@pytest.mark.parametrize("name", ["records.parquet", "claims.json"])
def test_a_damaged_file_is_named(study: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (study / name).write_bytes((study / name).read_bytes()[:-200])
    assert redraw_command.main([str(study), "--figures", "forest"]) == 2
    said = capsys.readouterr().err
    assert name in said and "cannot be read as" in said and "Traceback" not in said


def test_an_interrupted_drawing_ends_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The light command is guarded as the others are."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(redraw_command, "redraw", interrupted)
    monkeypatch.setattr(sys, "argv", ["landscape", "report", "anywhere", "--figures", "all"])
    assert launch.main() == 130
    assert "interrupted" in capsys.readouterr().err


def test_the_command_does_not_wait_for_torch(study: Path) -> None:
    code = (
        "import sys; sys.argv = ['landscape', 'report', sys.argv[1], '--figures', 'forest', '--format', 'svg,pdf']\n"
        "from analyses.launch import main\n"
        "status = main()\n"
        "print(sorted({'torch', 'transformers', 'landscape'} & set(sys.modules)))\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(study)], capture_output=True, text=True, check=True)
    *paths, loaded = done.stdout.splitlines()
    assert [Path(path).name for path in paths] == ["forest.svg", "forest.pdf"] and loaded == "[]"
