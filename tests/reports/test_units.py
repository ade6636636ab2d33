"""The unit of losses: nats, but for a regression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reports.page import write_report
from reports.units import loss_unit, units_of
from tests.reports.conftest import made_up_records, write_study

pytestmark = pytest.mark.usefixtures("svg_alone")


@pytest.mark.parametrize(
    ("settings", "unit"),
    [
        ("task: {name: regression, data: x.csv}\n", "squared units of the label"),
        ("task: regression\n", "squared units of the label"),
        ("task: {name: digits}\n", "nats"),
        ('task: {name: "mine.tasks:Counts", unit: square metres}\n', "square metres"),
        ('task: {name: "mine.tasks:Counts"}\n', "units of the loss"),
        ("{}\n", "nats"),
        (None, "nats"),
    ],
)
def test_the_folders_task_says_which(tmp_path: Path, settings: str | None, unit: str) -> None:
    if settings is not None:
        (tmp_path / "comparison.yaml").write_text(settings)
    with units_of(tmp_path):
        assert loss_unit() == unit
    assert loss_unit() == "nats"


def test_a_regressions_page_speaks_of_no_nats(claims: dict[str, Any], tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_records(("lora", "bilora"), num_seeds=2), claims, [])
    (folder / "study.yaml").write_text("name: made-up\ntask: {name: regression}\n")
    visible = write_report(folder).read_text()
    body = visible[visible.index("<body") :]
    assert "squared units of the label" in body and " nats" not in body
