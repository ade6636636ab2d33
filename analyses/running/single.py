"""Measurements of a single finished run, outside an audit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd
import torch

from analyses.measures.base import Measure
from analyses.measures.registry import CellMeasurer, measures_of, with_needs
from analyses.records import read_records
from analyses.running.damage import refuse_damaged, set_damaged_measurements_aside
from analyses.running.executors import quieten
from analyses.running.preparing import locked
from analyses.running.ranks import Place
from analyses.study import Cell, Study, StudyError, StudyFolder, load_study
from analyses.study.base import near
from analyses.training.devices import check_device
from analyses.training.runs import run_at, train_cell


def measured(
    path: Path, names: list[str] | None, device: str | None = None, place: Place | None = None
) -> pd.DataFrame:
    """Records of one run with its own study's settings, measured now unless they are there.

    The settings are those that the study's folder has today, or of when it was trained where that has none for it.

    Args:
        path: Folder of the run.
        names: Measures; None or none for all but the pictures.
        device: In place of the study's.
        place: This process among those that measure together, of which the first writes.

    Raises:
        StudyError: It is no run folder, its pretrained model is missing, or a measure is unknown.
    """
    quieten()
    study, cell, folder = run_at(path)
    study = _today(study, cell, folder)
    study = study.model_copy(update={"device": device}) if device else study
    if not torch.cuda.is_initialized():  # later runs see the one GPU that the first has taken
        check_device(study.device)
    known = measures_of(study)
    for name in names or []:
        if name not in known:
            raise StudyError(f"--what: expected some of {', '.join(known)}; got {name!r}{near(name, known)}")
        if known[name].recorded and study.measures.dynamics is None:
            raise StudyError(f"--what: {name} needs what is recorded along training; set the study's measures.dynamics")
    chosen = [measure for measure in known.values() if _is_asked_for(measure, names, study, cell)]
    place = place or Place()
    refuse_damaged(study, cell, folder)
    with ExitStack() as held:
        if place.writes:
            held.enter_context(locked(folder, "RUN"))
            set_damaged_measurements_aside(study, folder, cell)
        place.agree(True)  # the others copy what is left
        if not place.writes:
            folder = held.enter_context(_copy(folder, study, cell))
        measurer = CellMeasurer(study, cell, folder)
        for measure in with_needs(chosen):
            if place.agree(measure.path(study, cell, folder).exists()):
                continue
            if measure.recorded and not folder.recording(study, cell).exists():
                if place.count > 1:
                    raise StudyError(f"--what: {measure.name} needs a recorded training; run it without torchrun")
                train_cell(study, cell, folder, _silent, record=True)
            measurer.measure(measure, _silent)
        return pd.concat([read_records(measure.path(study, cell, folder)) for measure in chosen], ignore_index=True)


def _today(study: Study, cell: Cell, folder: StudyFolder) -> Study:
    """The settings that a study's folder has now, where they are those of this run."""
    if not folder.settings.is_file():
        return study
    now = load_study(folder.settings)
    same = now.name == study.name and cell.method in now.methods and now.run_name(cell) == study.run_name(cell)
    return now if same else study


@contextmanager
def _copy(folder: StudyFolder, study: Study, cell: Cell) -> Iterator[StudyFolder]:
    """A folder that shows the study's run and has measurements of its own, which vanish with it."""
    with tempfile.TemporaryDirectory(prefix="landscape-") as name:
        copy = StudyFolder(Path(name))
        for shown in ("base", "runs", "recordings"):
            (copy.root / shown).symlink_to(folder.root / shown)
        if folder.measurements(study, cell).is_dir():
            shutil.copytree(folder.measurements(study, cell), copy.measurements(study, cell))
        yield copy


def _is_asked_for(measure: Measure, names: list[str] | None, study: Study, cell: Cell) -> bool:
    if measure.recorded and study.measures.dynamics is None:
        return False
    return measure.name in names if names else measure.default_seeds is None and measure.applies(study, cell)


def _silent(step: int, total: int) -> None:
    """No progress is shown."""
