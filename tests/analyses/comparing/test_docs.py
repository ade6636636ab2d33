"""docs/compare.md names every setting."""

from __future__ import annotations

from pathlib import Path

from analyses.comparing.settings import ComparisonSettings

PAGE = Path(__file__).parents[3] / "docs" / "compare.md"


def test_every_setting_has_its_line() -> None:
    table = PAGE.read_text().partition("## Settings")[2]
    for key in ComparisonSettings.model_fields:
        assert f"`{key}`" in table, key
