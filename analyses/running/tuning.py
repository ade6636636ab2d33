"""The small grid from which a study's learning rates and radii were chosen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from analyses.records import read_json, write_atomically, write_json
from analyses.running.executors import quieten, run_cells
from analyses.running.preparing import check, exclusive, prepare
from analyses.running.progress import ProgressFile
from analyses.study import Cell, MethodSettings, Study, StudyError, StudyFolder, TuningSettings
from analyses.training.devices import take_device
from analyses.training.runs import load_minimum, study_task, train_cell
from bilora import METHODS
from bilora.methods.bilora import BiLora, RandomAuxiliary
from landscape import EmpiricalRisk
from landscape.losses import zero_one

SETTINGS = ["learning_rate", "rho", "auxiliary_lr"]


@dataclass(frozen=True)
class GridPoint:
    """One training run of the grid."""

    method: str
    settings: MethodSettings
    seed: int

    def __str__(self) -> str:
        numbers = "-".join(f"{value:g}" for value in self.settings.model_dump(include=set(SETTINGS)).values() if value)
        return f"{self.method}-{numbers}-seed{self.seed}"


def grid(study: Study, tuning: TuningSettings) -> Iterator[tuple[str, MethodSettings]]:
    """Every method with every combination of its settings."""
    for method in study.methods:
        family = METHODS[study.methods[method].method or method]
        learns_auxiliary = issubclass(family, BiLora) and not issubclass(family, RandomAuxiliary)
        ratios = tuning.auxiliary_lr_ratio.get(method, [1.0]) if learns_auxiliary else [None]
        for rate, rho, ratio in itertools.product(tuning.learning_rate[method], tuning.rho.get(method, [0.0]), ratios):
            auxiliary = None if ratio is None else float(f"{rate * ratio:.6g}")
            tried = {"learning_rate": rate, "rho": rho, "auxiliary_lr": auxiliary}
            yield method, study.methods[method].model_copy(update=tried)


def tune(study: Study, folder: StudyFolder, *, jobs: int) -> pd.DataFrame:
    """Train the grid on the tuning seeds and judge it on the validation split.

    Returns:
        One row a method and setting: mean training loss, mean validation accuracy and loss over the seeds, and the
        number of runs that diverged.

    Raises:
        StudyError: The study has no grid.
    """
    if study.tuning is None:
        raise StudyError("tuning: the study has no grid; add a 'tuning' section")
    check(study)
    seeds = study.tuning.seeds
    settings = list(grid(study, study.tuning))
    points = [GridPoint(method, setting, seed) for method, setting in settings for seed in seeds]
    with exclusive(study, folder):
        quieten()
        prepare(study, folder)
        missing = [point for point in points if not _result(study, folder, point).exists()]
        if missing:
            run_cells(missing, partial(_try, study, folder), folder, jobs=jobs)
    rows = []
    for method, setting in settings:
        paths = [_result(study, folder, GridPoint(method, setting, seed)) for seed in seeds]
        results = [read_json(path) for path in paths if path.exists()]
        measured = pd.DataFrame(results, columns=["train_loss", "validation_accuracy", "validation_loss"])
        chosen = {key: setting.model_dump()[key] for key in SETTINGS}
        failed = {"num_failed": len(seeds) - len(results)}
        rows.append({"method": method} | chosen | measured.mean().to_dict() | failed)
    return pd.DataFrame(rows)


def best_settings(table: pd.DataFrame, tuning: TuningSettings) -> dict[str, MethodSettings]:
    """The choice for each method: highest mean validation accuracy among settings that fit the training data.

    Settings count if no seed diverged and the mean training loss is at most ``max_train_loss``; ties go to the lower
    validation loss.
    """
    chosen = {}
    for method, rows in table.groupby("method", sort=False):
        fit = rows[(rows["num_failed"] == 0) & (rows["train_loss"] <= tuning.max_train_loss)]
        if fit.empty:
            raise StudyError(f"tuning: no setting of {method} reaches a training loss of {tuning.max_train_loss}")
        row = fit.sort_values(["validation_accuracy", "validation_loss"], ascending=[False, True]).iloc[0]
        auxiliary = None if pd.isna(row["auxiliary_lr"]) else float(row["auxiliary_lr"])
        chosen[str(method)] = MethodSettings(
            learning_rate=float(row["learning_rate"]), rho=float(row["rho"]), auxiliary_lr=auxiliary
        )
    return chosen


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write the grid's results as CSV."""
    rounded = table.round({"train_loss": 5, "validation_accuracy": 5, "validation_loss": 5})
    write_atomically(path, lambda temporary: rounded.to_csv(temporary, index=False))


def _variant(study: Study, point: GridPoint) -> tuple[Study, Cell]:
    """The study with a point's settings, and the cell to train."""
    cell = Cell(point.method, point.seed, study.train_sizes[0])
    return study.model_copy(update={"methods": {point.method: point.settings}}), cell


def _result(study: Study, folder: StudyFolder, point: GridPoint) -> Path:
    variant, cell = _variant(study, point)
    return folder.root / "grid" / f"{variant.run_name(cell)}.json"


def _try(study: Study, folder: StudyFolder, point: GridPoint, progress: ProgressFile) -> None:
    """Train one point of the grid and keep its numbers."""
    variant, cell = _variant(study, point)
    if not folder.run(variant, cell).exists():
        train_cell(variant, cell, folder, progress.stage("train"))
    minimum, task = load_minimum(variant, cell, folder), study_task(variant, cell)
    minimum.model.to(take_device(study.device))
    validation = task.batches("validation")
    numbers = {
        "train_loss": EmpiricalRisk(minimum.model, task.batches("train")).loss(),
        "validation_accuracy": 1 - EmpiricalRisk(minimum.model, validation, loss=zero_one).loss(),
        "validation_loss": EmpiricalRisk(minimum.model, validation).loss(),
    }
    write_json(_result(study, folder, point), numbers)
