"""Run cells on an engine, in processes of one thread each; a cell that fails leaves the others alone."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from analyses.running.progress import ProgressBars, ProgressFile
from analyses.study import StudyFolder

Item = TypeVar("Item")
"""What one worker does at a time: a cell of a study or a point of a grid, named by its ``str``."""

_SHORT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "can't allocate memory", "not enough memory")
"""As the exceptions of CUDA and Python are named, and in torch's words for main memory."""

Work = Callable[[StudyFolder, Any, ProgressFile], None]
"""What is done with an item, in a study's folder."""


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

    @property
    def of_memory(self) -> bool:
        """Whether there was no memory for it, on a GPU or here."""
        return any(text in self.reason for text in _SHORT_OF_MEMORY)


@dataclass(frozen=True)
class Task:
    """What a worker is told: it goes to other processes, and to other machines.

    Attributes:
        work: To be done with every item.
        folder: The study's, by its absolute path.
        main_process: The process that waits for the items.
        path: Its `sys.path`: measures and tasks of the user's are found there.
    """

    work: Work
    folder: StudyFolder
    main_process: int
    path: tuple[str, ...]

    def __call__(self, item: Item) -> Failure | None:
        """Do the work; whatever goes wrong is the answer."""
        # A worker that is used again may be older than what the caller put on the path.
        sys.path.extend(entry for entry in self.path if entry not in sys.path)
        quieten()
        progress = ProgressFile(self.folder.progress, str(item), self.main_process)
        try:
            self.work(self.folder, item, progress)
        except (Exception, SystemExit) as error:  # whatever it is belongs in the report; the other cells go on
            return Failure(str(item), f"{type(error).__name__}: {error}", traceback.format_exc())
        finally:
            progress.close()
            if torch.cuda.is_initialized():  # what is kept for reuse is missing from those that share the GPU
                torch.cuda.empty_cache()
        return None


class Engine(Protocol):
    """Where items are worked on."""

    @property
    def workers(self) -> int:
        """How many items are at work at a time, as far as is known beforehand."""

    def run(self, items: Sequence[Item], task: Task) -> Iterator[tuple[Item, Failure | None]]:
        """Do a task on every item; each as it is done, with what went wrong."""


def run_cells(items: Sequence[Item], work: Work, folder: StudyFolder, engine: Engine) -> list[Failure]:
    """Do ``work`` on every item.

    Returns:
        The failures, in the order of the items.
    """
    failures: list[tuple[int, Failure]] = []
    path = tuple(str(Path(entry).resolve()) for entry in sys.path)
    task = Task(work, StudyFolder(folder.root.resolve()), os.getpid(), path)
    with ProgressBars(folder.progress, len(items), engine.workers) as bars:
        for item, failure in engine.run(items, task):
            if failure is not None:
                failures.append((items.index(item), failure))
            bars.cell_done()
    return [failure for _, failure in sorted(failures, key=lambda numbered: numbered[0])]


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
