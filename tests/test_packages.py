"""What is built: a wheel and a source archive that hold everything, and parts that say what they lack."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from analyses.records import read_json, read_records
from tests.analyses.mini import QUICK

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and a source archive, built from a copy of the sources without the network."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if not name.startswith(("examples/", "tests/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = "import setuptools.build_meta as m; print(m.build_wheel('..'), m.build_sdist('..'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_both_archives_hold_modules_templates_and_presets(built: Path) -> None:
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        in_wheel = set(file.namelist())
        metadata = next(file.read(name).decode() for name in in_wheel if name.endswith("METADATA"))
    with tarfile.open(archive) as file:
        in_archive = {name.partition("/")[2] for name in file.getnames()}
    packages = ("landscape", "bilora", "analyses", "reports")
    modules = {str(path.relative_to(ROOT)) for name in packages for path in (ROOT / name).rglob("*.py")}
    others = {"analyses/presets/digits.yaml", "analyses/judging/claims.yaml", "reports/templates/comparison.html.j2"}
    assert modules | others <= in_wheel and modules | others <= in_archive
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert sorted(line.split()[1].partition(">")[0] for line in needed) == ["numpy", "scipy", "torch"]


def test_extras_that_are_named_somewhere_exist(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        metadata = next(file.read(name).decode() for name in file.namelist() if name.endswith("METADATA"))
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, flags=re.MULTILINE))
    texts = [*ROOT.glob("*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("analyses/**/*.py")]
    named = {extra for path in texts for extra in re.findall(r"bilora-landscape\[(\w+)\]", path.read_text())}
    assert named | {"cluster", "slurm"} <= extras and "data" in named


def test_an_installed_package_runs_a_study_from_another_repository(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    author = ("-c", "user.name=a", "-c", "user.email=b")
    for command in (("init", "-q"), (*author, "commit", "-q", "--allow-empty", "-m", "c")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(QUICK | {"seeds": 1}))
    done = subprocess.run(
        [sys.executable, "-m", "analyses.cli", "audit", "--config", "study.yaml", "--out", "out", "--jobs", "1"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(read_records(tmp_path / "out" / "records.parquet")) and (tmp_path / "out" / "report.html").exists()
    (environment,) = read_json(tmp_path / "out" / "environment.json")
    assert environment["commit"] == "none: an installed package"  # and not that of the repository around it


@pytest.mark.parametrize(
    ("missing", "part", "message"),
    [
        ("peft", "bilora", "bilora needs peft, which is not installed: pip install 'bilora-landscape[train]'"),
        ("pandas", "analyses", "analyses needs pandas, which is not installed: pip install 'bilora-landscape[audit]'"),
    ],
)  # fmt: skip
def test_a_part_says_what_it_lacks_and_landscape_needs_neither(missing: str, part: str, message: str) -> None:
    others = ("transformers", "peft", "pandas", "matplotlib", "sklearn", "pydantic", "jinja2")
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in others)
    alone = subprocess.run(
        [sys.executable, "-c", f"import sys; {blocked}; import landscape; print(landscape.lanczos.__name__)"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert alone.stdout.strip() == "lanczos", alone.stderr
    code = f"import sys; sys.modules[{missing!r}] = None; import {part}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]
