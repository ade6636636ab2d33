"""The audit from settings to records and claims; everything already done is kept."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pandas as pd
from tqdm import tqdm

from analyses.judging.claims import claims_document
from analyses.measures.cost import measure_cost
from analyses.measures.landscapes import measure_barriers
from analyses.measures.registry import kinds_at, measure_cell
from analyses.records import read_records, write_atomically, write_json, write_records
from analyses.records.files import new_folder, remove_leftovers
from analyses.running.executors import Failure, quieten, run_cells
from analyses.running.progress import ProgressFile
from analyses.study import Cell, Study, StudyError, StudyFolder
from analyses.tasks import build_task
from analyses.training.devices import check_device
from analyses.training.runs import environment, method_config, train_cell
from bilora import METHODS
from bilora.attaching import target_layers


@dataclass(frozen=True)
class Outcome:
    """What an audit left: the judged claims, and the cells that failed."""

    claims: dict[str, object]
    failures: list[Failure]
    num_done_before: int
    num_cells: int


def run_audit(study: Study, folder: StudyFolder, *, jobs: int) -> Outcome:
    """Train and measure every cell that is not done, then gather records and judge the claims.

    Raises:
        StudyError: The settings do not fit the task, or the folder is another study's or in use.
    """
    check(study)
    folder.claim(study)
    with exclusive(folder):
        quieten()
        prepare(study, folder)
        cells = list(study.cells())
        missing = [cell for cell in cells if not is_done(study, cell, folder)]
        failures = run_cells(missing, partial(run_cell, study, folder), folder, jobs=jobs) if missing else []
        if study.measures.surface and not folder.barriers(study).exists() and not failures:
            with tqdm(desc="barriers", unit="pair", dynamic_ncols=True) as bar:
                measure_barriers(study, folder, partial(_show, bar))
        if not folder.cost(study).exists():
            with tqdm(desc="step cost", unit="round", dynamic_ncols=True) as bar:
                measure_cost(study, folder, partial(_show, bar))
        records = gather(study, folder)
        document = claims_document(records, study.claims)
        write_json(folder.root / "claims.json", document)
        rows = [{"cell": f.cell, "reason": f.reason, "trace": f.trace} for f in failures]
        write_json(folder.root / "failures.json", rows)
        if missing or not (folder.root / "environment.json").exists():
            write_json(folder.root / "environment.json", environment())
    return Outcome(document, failures, len(cells) - len(missing), len(cells))


def check(study: Study) -> None:
    """Refuse settings that do not fit the task, before any work.

    Raises:
        StudyError: The split is impossible, no layer is adapted, or the rank is too large.
    """
    check_device(study.device)
    for train_size in study.train_sizes:
        model = build_task(study.task, train_size).new_model(0)
    names = target_layers(model, study.adapters.target_modules, study.adapters.modules_to_save)
    if not names:
        linear = sorted({name.split(".")[-2] for name, p in model.named_parameters() if p.ndim == 2})
        raise StudyError(
            f"adapters.target_modules: {study.adapters.target_modules!r} matches no linear layer; "
            f"the model has {', '.join(linear)}"
        )
    shapes = dict(model.named_parameters())
    smallest = min(min(shapes[f"{name}.weight"].shape) for name in names)
    for column in study.methods:
        config = method_config(study, column)
        try:
            METHODS[config.method].check(config)
        except ValueError as error:
            raise StudyError(f"methods.{column}: {error}") from error
        largest = max(config.r * (2 if config.method == "lora_2r" else 1), config.auxiliary_r or 1)
        if largest > smallest:
            raise StudyError(f"adapters.r: rank {largest} exceeds the smallest adapted dimension, {smallest}")


def prepare(study: Study, folder: StudyFolder) -> None:
    """Create the base model if it is not there."""
    remove_leftovers(folder.root)
    path = folder.base(study)
    if not path.exists():
        task = build_task(study.task, study.train_sizes[0])
        with tqdm(desc="base model", unit="step", dynamic_ncols=True) as bar, new_folder(path) as temporary:
            task.create_base(temporary, partial(_show, bar))


def is_done(study: Study, cell: Cell, folder: StudyFolder) -> bool:
    """Whether a cell is trained and measured with these very settings."""
    files = (folder.measurement(study, cell, kind) for kind in kinds_at(study, cell))
    return folder.run(study, cell).exists() and all(path.exists() for path in files)


def run_cell(study: Study, folder: StudyFolder, cell: Cell, progress: ProgressFile) -> None:
    """Train and measure one cell, skipping what is there."""
    if not folder.run(study, cell).exists():
        train_cell(study, cell, folder, progress.stage("train"))
    for kind in kinds_at(study, cell):
        if not folder.measurement(study, cell, kind).exists():
            measure_cell(study, cell, folder, kind, progress.stage(kind))


def train_only(study: Study, folder: StudyFolder, cell: Cell, progress: ProgressFile) -> None:
    """Train one cell."""
    train_cell(study, cell, folder, progress.stage("train"))


def gather(study: Study, folder: StudyFolder) -> pd.DataFrame:
    """All records of the study's finished measurements, as parquet and CSV in its folder."""
    paths = [folder.measurement(study, cell, kind) for cell in study.cells() for kind in kinds_at(study, cell)]
    paths += [folder.barriers(study), folder.cost(study)]
    records = pd.concat([read_records(path) for path in paths if path.exists()], ignore_index=True)
    write_records(records, folder.root / "records.parquet")
    write_atomically(folder.root / "records.csv", lambda temporary: records.to_csv(temporary, index=False))
    return records


@contextmanager
def exclusive(folder: StudyFolder) -> Iterator[None]:
    """Hold the study's folder; a second process that wants it is refused, a dead one holds nothing.

    Raises:
        StudyError: Another process works in the folder.
    """
    with (folder.root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(f"--out: another process is at work in {folder.root}; wait for it") from None
        yield


def _show(bar: tqdm, step: int, total: int) -> None:  # type: ignore[type-arg]
    bar.total = total
    bar.update(step - bar.n)
