"""Single figures of a study once more, from its records alone: no model and no torch is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analyses.records import read_json, read_records
from reports.figures import draw_all
from reports.style import FORMATS


def redraw(folder: Path, names: Sequence[str], formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw some of the figures of a finished study into its ``figures``.

    Args:
        folder: Of the study; holds ``records.parquet`` and ``claims.json``.
        names: Of the figures; ``all`` for every one.
        formats: Some of ``pdf``, ``svg`` and ``png``.

    Returns:
        The files written, beside each figure's numbers.

    Raises:
        ValueError: The folder is no study's, or a name or format is unknown or has no records here.
    """
    missing = [name for name in ("records.parquet", "claims.json") if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"DIR: {folder} holds no {missing[0]}; run 'landscape audit' first")
    unknown = [one for one in formats if one not in FORMATS]
    if unknown:
        raise ValueError(f"--format: expected some of {', '.join(FORMATS)}, got {unknown[0]!r}")
    records, rho = read_records(folder / "records.parquet"), read_json(folder / "claims.json", "rho")["rho"]
    only = None if list(names) == ["all"] else names
    drawn = draw_all(records, rho=rho, folder=folder / "figures", only=only, formats=formats)
    return [one.path.with_suffix(f".{suffix}") for one in drawn for suffix in formats]
