"""Single figures of a study or a comparison once more, from its records alone: no model and no torch is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analyses.records import read_json, read_records
from reports.comparison import DESCRIPTION
from reports.comparison.page import comparison_plans
from reports.figures import FigureFile, draw_all, draw_plans
from reports.style import FORMATS, styles_of, told_apart
from reports.units import units_of


def redraw(folder: Path, names: Sequence[str], formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw some of the figures of a finished study or comparison into its ``figures``.

    Args:
        folder: Of the study, with ``records.parquet`` and ``claims.json``, or of the comparison.
        names: Of the figures; ``all`` for every one.
        formats: Some of ``pdf``, ``svg`` and ``png``.

    Returns:
        The files written, beside each figure's numbers.

    Raises:
        ValueError: The folder is neither, or a name or format is unknown or has no records here.
    """
    unknown = [one for one in formats if one not in FORMATS]
    if unknown:
        raise ValueError(f"--format: expected some of {', '.join(FORMATS)}, got {unknown[0]!r}")
    compared = (folder / DESCRIPTION).is_file()
    for name in ("records.parquet",) if compared else ("records.parquet", "claims.json"):
        if not (folder / name).is_file():
            command = "compare" if compared else "audit"
            raise ValueError(f"DIR: {folder} holds no {name}; run 'landscape {command}' first")
    only = None if list(names) == ["all"] else names
    with units_of(folder):
        drawn = (_of_a_comparison if compared else _of_a_study)(folder, only, formats)
    return [one.path.with_suffix(f".{suffix}") for one in drawn for suffix in formats]


def _of_a_study(folder: Path, only: Sequence[str] | None, formats: Sequence[str]) -> list[FigureFile]:
    records, rho = read_records(folder / "records.parquet"), read_json(folder / "claims.json", "rho")["rho"]
    with told_apart(records["method"].dropna()):
        return draw_all(records, rho=rho, folder=folder / "figures", only=only, formats=formats)


def _of_a_comparison(folder: Path, only: Sequence[str] | None, formats: Sequence[str]) -> list[FigureFile]:
    records, names = read_records(folder / "records.parquet"), read_json(folder / DESCRIPTION, "names")["names"]
    with styles_of(names):
        return draw_plans(comparison_plans(records), folder / "figures", only=only, formats=formats)
