"""Cells in this process, or in a few beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from analyses.running.executors import Failure, Item, Task
from analyses.training.devices import WORKER


class SequentialEngine:
    """One item after the other in this very process: what a debugger can follow."""

    workers = 1

    def run(self, items: Sequence[Item], task: Task) -> Iterator[tuple[Item, Failure | None]]:
        for item in items:
            yield item, task(item)


@dataclass(frozen=True)
class LocalEngine:
    """Worker processes of joblib's loky; with several GPUs these take them in turn.

    A worker process that dies (out of memory, a signal) takes its pool with it; the items then left are done one
    at a time, so that the deadly one is found and the others finish. An item that finds no memory beside the others,
    on a GPU that several workers share or here, is done again once nothing is at work beside it.

    Attributes:
        workers: Processes.
    """

    workers: int

    def run(self, items: Sequence[Item], task: Task) -> Iterator[tuple[Item, Failure | None]]:
        left = list(items)
        try:
            for item, failure in self._attempt(items, task, self.workers):
                if failure is not None and failure.of_memory and self.workers > 1:
                    continue
                left.remove(item)
                yield item, failure
        except TerminatedWorkerError:
            pass
        for item in left:
            try:
                yield from self._attempt([item], task, 2)  # joblib runs n_jobs=1 in this process, which must live
            except TerminatedWorkerError as error:
                yield item, Failure(str(item), "the worker process was killed", str(error))

    def _attempt(self, items: Sequence[Item], task: Task, workers: int) -> Iterator[tuple[Item, Failure | None]]:
        with joblib.parallel_config("loky", inner_max_num_threads=1):
            parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)
            yield from parallel(joblib.delayed(_with_item)(task, item, turn) for turn, item in enumerate(items))


def _with_item(task: Task, item: Item, turn: int) -> tuple[Item, Failure | None]:
    os.environ.setdefault(WORKER, str(turn))  # a process's first item: 0, 1, ... as many as there are processes
    return item, task(item)
