"""Files of a study that are no longer what was written: set aside, so that they are made anew."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from analyses.records.integrity import is_damaged, remove_seal, sealed_names
from analyses.study import Cell, Study, StudyError, StudyFolder

ASIDE = "damaged"
"""Folder for what was found damaged, in the study's."""


def set_damaged_aside(study: Study, folder: StudyFolder, cells: Iterable[Cell]) -> list[Cell]:
    """Move what is damaged of a study's base model, cells and common measurements out of the way, and say so.

    Returns:
        The cells of which something was moved: what they had is to be made anew.
    """
    hit = []
    set_damaged_base_aside(study, folder)
    for cell in cells:
        run = set_damaged_run_aside(study, folder, cell)
        measurements = set_damaged_measurements_aside(study, folder, cell)
        hit += [cell] if run or measurements else []
    set_aside(folder, [path for path in (folder.cost(study), folder.barriers(study)) if is_damaged(path)])
    return hit


def set_damaged_base_aside(study: Study, folder: StudyFolder) -> None:
    """Move a damaged base model out of the way."""
    set_aside(folder, [path for path in (folder.base(study),) if is_damaged(path)])


def set_damaged_run_aside(study: Study, folder: StudyFolder, cell: Cell) -> bool:
    """Move a damaged run or recording out of the way; whether there was one."""
    made = (folder.run(study, cell), folder.recording(study, cell))
    return set_aside(folder, [path for path in made if is_damaged(path)])


def set_damaged_measurements_aside(study: Study, folder: StudyFolder, cell: Cell) -> bool:
    """Move damaged measurements of a run out of the way; whether there were some."""
    return set_aside(folder, _damaged_in(folder.measurements(study, cell)))


def refuse_damaged(study: Study, cell: Cell, folder: StudyFolder) -> None:
    """Refuse a run whose files, or whose pretrained model's, are not what training wrote.

    Raises:
        StudyError: They are.
    """
    for path in (folder.run(study, cell), folder.base(study)):
        if is_damaged(path):
            raise StudyError(
                f"RUN: {path} is damaged, its checksums differ: expected what training wrote; 'landscape audit' of its "
                "study makes it anew"
            )


def _damaged_in(place: Path) -> Iterator[Path]:
    """Damaged files among a run's measurements, with the others of these: records, and vectors beside them."""
    files = {path.name for path in place.glob("[!.]*") if path.is_file()}
    damaged = {Path(name).stem for name in files | sealed_names(place) if is_damaged(place / name)}
    for name in sorted(files | sealed_names(place)):
        if Path(name).stem in damaged:
            yield place / name


def set_aside(folder: StudyFolder, found: Iterable[Path]) -> bool:
    """Move files and folders of a study out of the way, and say so; whether there was anything to move."""
    moved = False
    for path in found:
        remove_seal(path)
        if not path.exists():
            continue
        name = path.relative_to(folder.root)
        aside = folder.root / ASIDE / "--".join(name.parts)
        aside.parent.mkdir(exist_ok=True)
        number = 0
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{'--'.join(name.parts)}.{number}")
        path.rename(aside)
        print(f"damaged, made anew: {name.as_posix()} (its checksum differs; kept in {ASIDE}/)", file=sys.stderr)
        moved = True
    return moved
