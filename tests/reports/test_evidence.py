"""The small drawings beside a claim: where they put its numbers."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from reports.evidence import WIDTH, interval_bar, methods_option, slope_plot

RATIO = {
    "family": "outcome", "unit": "ratio", "effect": 2.0, "low": 1.0, "high": 4.0, "limit": 1.0, "margin": 1.25,
    "comparison": "bilora / lora",
}  # fmt: skip


def attributes(drawing: str, kind: str) -> dict[str, str]:
    (found,) = re.findall(rf'<\w+ class="{kind}" ([^>]*)/>', drawing)
    return dict(re.findall(r'([\w-]+)="([^"]*)"', found))


def test_ratios_lie_on_one_logarithmic_axis() -> None:
    wider = RATIO | {"effect": 0.25, "low": 0.25, "high": 0.25}
    drawing = str(interval_bar(RATIO, [RATIO, wider]))
    place = {
        value: 6 + (math.log(value) - math.log(0.25)) / math.log(16) * (WIDTH - 12) for value in (0.8, 1, 1.25, 2, 4)
    }
    assert float(attributes(drawing, "effect")["cx"]) == pytest.approx(place[2], abs=0.06)
    assert float(attributes(drawing, "limit")["x1"]) == pytest.approx(place[1], abs=0.06)
    assert float(attributes(drawing, "interval")["x2"]) == pytest.approx(place[4], abs=0.06)
    band = attributes(drawing, "band")
    assert float(band["x"]) == pytest.approx(place[0.8], abs=0.06)
    assert float(band["x"]) + float(band["width"]) == pytest.approx(place[1.25], abs=0.12)
    assert "Effect 2, 95 % interval 1 to 4; limit 1; equivalent from 0.8 to 1.25" in drawing


def test_other_units_have_their_own_linear_axis_with_a_band_around_the_limit() -> None:
    claim = RATIO | {"unit": "points", "effect": 1.0, "low": -1.0, "high": 3.0, "limit": 0.0, "margin": 1.0}
    drawing = str(interval_bar(claim, [claim, RATIO]))
    assert float(attributes(drawing, "limit")["x1"]) == pytest.approx(6 + (WIDTH - 12) / 4, abs=0.06)
    assert float(attributes(drawing, "band")["x"]) == pytest.approx(6, abs=0.06)


@pytest.mark.parametrize("change", [{"effect": None}, {"low": None, "high": None}, {"effect": 0.0, "low": 0.0}])
def test_what_is_undefined_or_zero_is_drawn_without_a_number_that_is_none(change: dict[str, Any]) -> None:
    drawing = str(interval_bar(RATIO | change, [RATIO | change]))
    assert not re.search(r"nan|inf\b|None", drawing)


def test_slopes_join_the_values_of_each_run() -> None:
    pairs = [
        {"seed": 0, "train_size": 100, "subject": 2.0, "reference": 1.0},
        {"seed": 1, "train_size": 100, "subject": 1.0, "reference": 8.0},
        {"seed": 2, "train_size": 100, "subject": None, "reference": 8.0},
    ]
    drawing = str(slope_plot(RATIO | {"pairs": pairs}))
    assert drawing.count("<g class=") == 2
    assert drawing.count('class="up"') == drawing.count('class="down"') == 1
    assert "1 of 2 runs lie lower in bilora than in lora; logarithmic axis" in drawing
    assert "seed 1, 100 examples: 8 → 1" in drawing


def test_nothing_is_drawn_against_a_number_or_without_pairs() -> None:
    assert slope_plot(RATIO) == ""
    constant = [{"seed": seed, "train_size": 9, "subject": float(seed), "reference": 0.0} for seed in range(3)]
    assert slope_plot(RATIO | {"pairs": constant}) == ""


def test_names_are_escaped() -> None:
    pairs = [{"seed": seed, "train_size": 9, "subject": 1.0, "reference": 2.0 + seed} for seed in range(2)]
    drawing = str(slope_plot(RATIO | {"comparison": "<b>x</b> / lora", "pairs": pairs}))
    assert "<b>" not in drawing and "&lt;b&gt;" in drawing


def test_the_command_names_every_column_and_is_quoted_for_a_shell() -> None:
    assert methods_option({"columns": ["bilora", "lora_sam_full", "lora"]}) == "--methods bilora lora_sam_full lora"
    assert methods_option({"columns": ["$(x) y"]}) == "--methods '$(x) y'"
    assert methods_option({}) == ""
