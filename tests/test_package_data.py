"""What an installation that is not editable must hold beside the modules."""

from __future__ import annotations

from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]


def test_every_file_that_is_no_module_is_packed() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {path for package, patterns in declared.items() for pattern in patterns
              for path in (ROOT / package.replace(".", "/")).glob(pattern)}  # fmt: skip
    there = {
        path
        for package in ("landscape", "bilora", "analyses", "reports")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert there == packed
