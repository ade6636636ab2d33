"""Run cells in worker processes of one thread each; a cell that fails leaves the others alone."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from analyses.running.progress import ProgressBars, ProgressFile
from analyses.study import StudyFolder

Item = TypeVar("Item", bound=Hashable)
"""What one worker does at a time: a cell of a study or a point of a grid, named by its ``str``."""


@dataclass(frozen=True)
class Failure:
    """Why a cell has no records.

    Attributes:
        cell: Name of the cell.
        reason: The exception in one line.
        trace: Where it arose.
    """

    cell: str
    reason: str
    trace: str


def run_cells(
    cells: Sequence[Item], work: Callable[[Item, ProgressFile], None], folder: StudyFolder, *, jobs: int
) -> list[Failure]:
    """Do ``work`` on every cell, ``jobs`` at a time.

    A worker process that dies (out of memory, a signal) takes its pool with it; the cells then left are done one
    at a time, so that the deadly one is found and the others finish.

    Returns:
        The failures, in the order of the cells.
    """
    outcomes: dict[Item, Failure | None] = {}
    with ProgressBars(folder.progress, len(cells), jobs) as bars:

        def attempt(batch: Sequence[Item], workers: int) -> None:
            tasks = (joblib.delayed(_guarded)(cell, work, folder, os.getpid(), list(sys.path)) for cell in batch)
            with joblib.parallel_config("loky", inner_max_num_threads=1):
                results = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)(tasks)
                for cell, failure in results:
                    outcomes[cell] = failure
                    bars.cell_done()

        try:
            attempt(cells, jobs)
        except TerminatedWorkerError:
            for cell in [cell for cell in cells if cell not in outcomes]:
                try:
                    attempt([cell], 2)  # joblib runs n_jobs=1 in this very process, which must survive
                except TerminatedWorkerError as error:
                    outcomes[cell] = Failure(str(cell), "the worker process was killed", str(error))
                    bars.cell_done()
    return [failure for cell in cells if (failure := outcomes[cell]) is not None]


def _guarded(
    cell: Item, work: Callable[[Item, ProgressFile], None], folder: StudyFolder, main_process: int, path: list[str]
) -> tuple[Item, Failure | None]:
    # A worker that is used again may be older than what the caller put on the path: measures and tasks of the user's.
    sys.path.extend(entry for entry in path if entry not in sys.path)
    quieten()
    progress = ProgressFile(folder.progress, str(cell), main_process)
    try:
        work(cell, progress)
    except Exception as error:  # whatever it is belongs in the report; the other cells go on
        reason = f"{type(error).__name__}: {error}"
        return cell, Failure(str(cell), reason, traceback.format_exc())
    finally:
        progress.close()
    return cell, None


def quieten() -> None:
    """One thread, no access to the network, and no other library's bars between ours."""
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
