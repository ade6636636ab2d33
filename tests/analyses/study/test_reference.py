"""docs/study.md against the settings that it is written from."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from analyses.study.base import Settings
from analyses.study.reference import SECTIONS, reference

DOCUMENT = Path(__file__).parents[3] / "docs" / "study.md"


def _subclasses(kind: type[BaseModel]) -> set[type[BaseModel]]:
    return {kind} | {below for child in kind.__subclasses__() for below in _subclasses(child)}


def test_the_document_is_what_the_settings_say() -> None:
    assert DOCUMENT.read_text() == reference(), "run: python -m analyses.study.reference > docs/study.md"


def test_every_group_of_settings_has_its_section() -> None:
    own = {kind for kind in _subclasses(Settings) if kind.__module__.startswith("analyses.study.")} - {Settings}
    assert own == set(SECTIONS.values())


def test_every_key_has_values_and_a_default_or_is_required() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(kind.model_fields) for kind in SECTIONS.values())
    for row in rows:
        key, values, default = (cell.strip() for cell in row.replace("\\|", "/").strip("|").split("|")[:3])
        assert key and values != "anything" and default, row
