"""One torch thread, no network and no leftover random state, for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def svg_alone() -> Iterator[None]:
    """Draw what pages show and leave the files for print empty, which take half of a report's time."""
    whole = Figure.savefig

    def savefig(figure: Figure, path: Path, **options: object) -> None:
        if path.suffix == ".svg":
            whole(figure, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield


@pytest.fixture(scope="module")
def no_report() -> Iterator[None]:
    """Audits without their report, which has tests of its own."""
    from analyses import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "write_report", lambda folder: folder / "report.html")
        yield


_SLOW = (
    *("analyses/test_cli.py", "running/test_audit.py", "running/test_drafting.py", "tests/test_docs.py"),
    *("running/test_own_parts.py", "reports/test_page.py", "test_average_case.py", "test_notebooks.py"),
    *("test_cli_settings.py", "test_packages.py", "test_data_parallel.py", "test_refusals.py", "test_tuning.py"),
    *("test_statistics.py", "test_distributed.py", "test_kills.py", "test_engines.py", "test_long_runs.py"),
)
"""Files of half a minute and more, the slowest first: begun first, so that no worker waits for another at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first; a file stays together, and within it nothing moves."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((number for number, name in enumerate(_SLOW) if path.endswith(name)), len(_SLOW))

    items.sort(key=place)
