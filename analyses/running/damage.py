"""Files of a study that are no longer what was written: set aside, so that they are made anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from analyses.records.integrity import is_damaged
from analyses.study import Study, StudyFolder

ASIDE = "damaged"
"""Folder for what was found damaged, in the study's."""


def set_damaged_aside(study: Study, folder: StudyFolder) -> list[str]:
    """Move every damaged run, recording, base model and file of measurements of a study out of the way.

    Returns:
        Their places in the study's folder.
    """
    found = [path for path in _kept(study, folder) if is_damaged(path)]
    names = []
    for path in found:
        name = path.relative_to(folder.root)
        aside = folder.root / ASIDE / "--".join(name.parts)
        aside.parent.mkdir(exist_ok=True)
        for number in range(1, 1000):
            if not aside.exists():
                break
            aside = aside.with_name(f"{'--'.join(name.parts)}.{number}")
        path.rename(aside)
        names.append(name.as_posix())
    return names


def _kept(study: Study, folder: StudyFolder) -> Iterator[Path]:
    yield from _if_there(folder.base(study))
    for cell in study.cells():
        yield from _if_there(folder.run(study, cell))
        yield from _if_there(folder.recording(study, cell))
        place = folder.measurements(study, cell)
        yield from sorted(path for path in place.glob("*") if path.is_file()) if place.is_dir() else ()
    yield from _if_there(folder.cost(study))
    yield from _if_there(folder.barriers(study))


def _if_there(path: Path) -> Iterator[Path]:
    if path.exists():
        yield path
