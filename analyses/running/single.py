"""Measurements of a single finished run, outside an audit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from analyses.measures.base import Measure
from analyses.measures.registry import measure_cell, measures_of, with_needs
from analyses.records import read_records
from analyses.running.executors import quieten
from analyses.running.preparing import locked
from analyses.study import Cell, Study, StudyError, StudyFolder
from analyses.study.base import near
from analyses.training.devices import check_device
from analyses.training.runs import RUN, read_run, train_cell


def measured(path: Path, names: list[str] | None, device: str | None = None) -> pd.DataFrame:
    """Records of one run with its own study's settings, measured now unless they are there.

    Args:
        path: Folder of the run.
        names: Measures; None or none for all but the pictures.
        device: In place of the study's.

    Raises:
        StudyError: It is no run folder, its pretrained model is missing, or a measure is unknown.
    """
    if not (path / RUN).is_file():
        raise StudyError(f"RUN: {path} is no run folder: it has no {RUN}")
    quieten()
    description = read_run(path)
    study = Study.model_validate(description["settings"] | ({"device": device} if device else {}))
    if not torch.cuda.is_initialized():  # later runs see the one GPU that the first has taken
        check_device(study.device)
    cell = Cell(description["method"], description["seed"], description["train_size"])
    folder = StudyFolder(path.resolve().parent.parent)
    if not folder.base(study).exists():
        raise StudyError(f"RUN: the pretrained model of {path} is missing; expected it at {folder.base(study)}")
    known = measures_of(study)
    for name in names or []:
        if name not in known:
            raise StudyError(f"--what: expected some of {', '.join(known)}; got {name!r}{near(name, known)}")
        if known[name].recorded and study.measures.dynamics is None:
            raise StudyError(f"--what: {name} needs what is recorded along training; set the study's measures.dynamics")
    chosen = [measure for measure in known.values() if _is_asked_for(measure, names, study, cell)]
    with locked(folder):
        for measure in with_needs(chosen):
            if not measure.path(study, cell, folder).exists():
                if measure.recorded and not folder.recording(study, cell).exists():
                    train_cell(study, cell, folder, _silent, record=True)
                measure_cell(study, cell, folder, measure, _silent)
    return pd.concat([read_records(measure.path(study, cell, folder)) for measure in chosen], ignore_index=True)


def _is_asked_for(measure: Measure, names: list[str] | None, study: Study, cell: Cell) -> bool:
    if measure.recorded and study.measures.dynamics is None:
        return False
    return measure.name in names if names else measure.default_seeds is None and measure.applies(study, cell)


def _silent(step: int, total: int) -> None:
    """No progress is shown."""
