"""The documentation: the tutorial's blocks run, in order, in one folder."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import bilora
import landscape
from analyses.records import read_json

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', (ROOT / "docs" / "tutorial.md").read_text(), re.M | re.S
)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_block_of_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {kind for kind, _, _ in BLOCKS} == {"yaml", "console", "python"}
    script = "".join(text for kind, title, text in BLOCKS if kind == "python" and not title)
    for kind, title, text in BLOCKS:
        if title:
            (tmp_path / title).write_text(text)
        elif kind == "console":
            for line in text.splitlines():
                monkeypatch.setenv("PYTHONPATH", "." if line.startswith("$ PYTHONPATH=.") else "")
                words = shlex.split(line.removeprefix("$ ").removeprefix("PYTHONPATH=. "))
                assert words[0] == "landscape"
                command = [sys.executable, "-c", "import sys; from analyses.launch import main; sys.exit(main())"]
                done = subprocess.run([*command, *words[1:]], capture_output=True, text=True, check=False, timeout=240)
                assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    verdicts = {
        claim["verdict"] for claim in read_json(Path("audit/summary.json"))["claims"] if claim["family"] != "cost"
    }
    assert verdicts <= {"undecided", "equivalent"}
    assert (tmp_path / "audit" / "report.html").is_file() and (tmp_path / "audit/figures/forest.svg").is_file()
    (claim,) = read_json(Path("own/summary.json"))["claims"]
    assert claim["name"] == "shrinking_moves_less" and claim["effect"] < 1


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    done = subprocess.run(
        [*command, "--site-dir", str(tmp_path)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING -" not in done.stderr
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text())
        assert fetched == [], page
    for package in (landscape, bilora):
        reference = (tmp_path / "reference" / f"{package.__name__}.html").read_text()
        missing = [
            name for name in package.__all__ if not re.search(rf'id="{package.__name__}\.[\w.]*{name}"', reference)
        ]
        assert missing == []
