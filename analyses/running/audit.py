"""The audit from settings to records and claims; everything already done is kept."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from analyses.judging.claims import claims_document
from analyses.judging.correlation import rank_correlations
from analyses.measures.cost import measure_cost
from analyses.measures.landscapes import measure_barriers
from analyses.measures.registry import CellMeasurer, measures_at
from analyses.records import write_json
from analyses.running.damage import set_damaged_aside
from analyses.running.executors import Engine, Failure, quieten, run_cells
from analyses.running.gathering import gather
from analyses.running.preparing import check, exclusive, prepare, refuse_changed_data, show
from analyses.running.progress import ProgressFile
from analyses.running.stopping import LOOKS, Stopping, looked_at, recorded_looks, refuse_other_plan
from analyses.study import Cell, Study, StudyFolder
from analyses.training.runs import read_run, train_cell


@dataclass(frozen=True)
class Outcome:
    """What an audit left: the judged claims, the cells that failed and the runs that diverged."""

    claims: dict[str, Any]
    failures: list[Failure]
    diverged: list[Failure]
    num_done_before: int
    num_cells: int


def run_audit(
    study: Study,
    folder: StudyFolder,
    *,
    engine: Engine,
    methods: Sequence[str] | None = None,
    stopping: Stopping | None = None,
) -> Outcome:
    """Train and measure every cell that is not done, then gather all records of the folder and judge the claims.

    Args:
        study: What to audit. Seeds that the folder has beyond the study's stay part of it.
        folder: Where.
        engine: Where cells are worked on.
        methods: Work on these of the study's methods only.
        stopping: How the study grows until it is decided; None for the study's number of seeds.

    Raises:
        StudyError: The settings do not fit the task, or the folder is another study's or in use.
    """
    check(study)
    with exclusive(study, folder):
        quieten()
        refuse_changed_data(study, folder)
        refuse_other_plan(recorded_looks(folder.root / LOOKS, study.claims), stopping)
        whole = folder.keep(study)
        damaged = set_damaged_aside(whole, folder, whole.cells())
        prepare(study, folder)
        cells = [cell for cell in study.cells() if methods is None or cell.method in methods]
        # What is damaged of seeds and methods that were not asked for had records, and is made anew, too.
        cells += [cell for cell in damaged if cell not in cells]
        missing = [cell for cell in cells if not is_done(study, cell, folder)]
        failures = run_cells(missing, partial(run_cell, whole), folder, engine) if missing else []
        failures += measure_together(whole, folder)
        records = gather(whole, folder)
        document = claims_document(records, study.claims, looked_at(records, whole, folder, stopping))
        write_json(folder.root / "claims.json", document)
        if study.claims.rank_correlations:
            write_json(folder.root / "correlations.json", rank_correlations(records, whole))
        diverged = [
            Failure(str(cell), reason, "")
            for cell in whole.cells()
            if folder.run(whole, cell).exists() and (reason := read_run(folder.run(whole, cell))["diverged"])
        ]
        for name, found in {"failures": failures, "diverged": diverged}.items():
            rows = [{"cell": f.cell, "reason": f.reason, "trace": f.trace} for f in found]
            write_json(folder.root / f"{name}.json", rows)
    return Outcome(document, failures, diverged, len(cells) - len(missing), len(cells))


def planned(study: Study, folder: StudyFolder) -> dict[str, int]:
    """What an audit would still have to do: trainings and measurements by name."""
    counts: Counter[str] = Counter()
    for cell in study.cells():
        counts["training"] += not folder.run(study, cell).exists()
        for measure in measures_at(study, cell):
            counts[measure.name] += not measure.path(study, cell, folder).exists()
    return dict(counts)


def is_done(study: Study, cell: Cell, folder: StudyFolder) -> bool:
    """Whether a cell is trained and measured with these very settings."""
    files = (measure.path(study, cell, folder) for measure in measures_at(study, cell))
    return folder.run(study, cell).exists() and all(path.exists() for path in files)


def run_cell(study: Study, folder: StudyFolder, cell: Cell, progress: ProgressFile) -> None:
    """Train and measure one cell, skipping what is there."""
    missing = [measure for measure in measures_at(study, cell) if not measure.path(study, cell, folder).exists()]
    recorded = any(measure.recorded for measure in missing) and not folder.recording(study, cell).exists()
    if recorded or not folder.run(study, cell).exists():
        train_cell(study, cell, folder, progress.stage("train"), record=recorded)
    measurer = CellMeasurer(study, cell, folder)
    for measure in missing:
        measurer.measure(measure, progress.stage(measure.name))


def train_only(study: Study, folder: StudyFolder, cell: Cell, progress: ProgressFile) -> None:
    """Train one cell."""
    train_cell(study, cell, folder, progress.stage("train"))


def measure_together(study: Study, folder: StudyFolder) -> list[Failure]:
    """What is measured over many cells at once: barriers between minima, and what a step costs.

    Returns:
        What failed; the records of the cells do without it.
    """
    first = [cell for cell in study.cells() if cell.seed == 0]
    works: dict[str, Callable[[Callable[[int, int], None]], None]] = {}
    trained = all(folder.run(study, cell).exists() for cell in first)
    if study.measures.surface and trained and not folder.barriers(study).exists():
        works["barriers"] = partial(measure_barriers, study, folder)
    if not folder.cost(study).exists():
        works["step cost"] = partial(measure_cost, study, folder)
    failures = []
    for name, work in works.items():
        with tqdm(desc=name, dynamic_ncols=True) as bar:
            try:
                work(partial(show, bar))
            except Exception as error:  # whatever it is, what the cells have measured stays
                failures.append(Failure(name, f"{type(error).__name__}: {error}", traceback.format_exc()))
    return failures
