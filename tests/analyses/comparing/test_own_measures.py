"""Measures of the user's in a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from analyses import compare
from analyses.measures.base import Measure
from analyses.measures.minima import Progress, Rows, Subject
from analyses.measures.registry import DYNAMICS
from analyses.study import StudyError
from tests.analyses.comparing.nets import QUICK, examples, minimum_of


def _largest(subject: Subject, progress: Progress) -> Rows:
    theta = subject.risk().theta.double()
    for power in subject.settings["powers"]:
        yield {"measure": "largest_weight", "index": power, "value": float(theta.abs().max()) ** power}


LARGEST = Measure("largest", _largest)
FOLLOWS_TRAINING = Measure("follows", _largest, needs=(DYNAMICS,))
TAKEN = Measure("curvature", _largest)
PLACE = f"{__name__}:LARGEST"


def test_what_they_record_is_in_records_tables_and_page(tmp_path: Path) -> None:
    minima = {"a": minimum_of(0), "b": minimum_of(1)}
    options = QUICK | {"what": ["fit"], "own": {PLACE: {"powers": [1, 2]}}}
    found = compare(minima, examples(), out=tmp_path / "out", **options)
    for name, model in minima.items():
        largest = max(float(weight.detach().abs().max()) for weight in model.parameters())
        assert found.table.loc["largest_weight, index 1", name] == pytest.approx(largest)
        assert found.table.loc["largest_weight, index 2", name] == pytest.approx(largest**2)
    assert "largest_weight, index 2" in found.to_markdown()
    assert "largest_weight, index 2" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("nowhere:LARGEST", "own: cannot import 'nowhere:LARGEST'"),
        (f"{__name__}:PLACE", "own: .* is a str, expected a measures.base.Measure"),
        (f"{__name__}:TAKEN", "own: .* is named 'curvature', as another measure"),
        (f"{__name__}:FOLLOWS_TRAINING", "own: follows reads what is recorded along training"),
    ],
)
def test_what_cannot_be_measured_is_refused(place: str, reason: str) -> None:
    with pytest.raises(StudyError, match=reason):
        compare({"a": minimum_of(0)}, examples(), own={place: {"powers": [1]}})
