"""Cells as an array of Slurm jobs, through submitit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analyses.running.executors import Failure, Item, Task
from analyses.study import StudyError

_FOLDER = ".slurm"
_POLL_SECONDS = 1.0
_CLUSTERS = ("slurm", "local", "debug")


@dataclass(frozen=True)
class SlurmEngine:
    """One job array, a cell a job; the folder has to lie where all nodes see it.

    What submitit needs lies in ``.slurm`` of the study's folder while jobs run: it hands functions and results over
    as pickles there, which only it reads, and which are deleted at the end. Nothing else is kept from one command to
    the next: an audit that goes on asks its own folder what is done.

    Attributes:
        jobs: Most jobs of the array at a time; None for Slurm's own limits.
        cpus: Processors of a job.
        gpus: GPUs of a job.
        settings: Of submitit's, by its names; ``cluster`` is ``slurm``, or ``local`` (processes of this machine) or
            ``debug`` (this very process) to try a study out.
    """

    jobs: int | None
    cpus: int
    gpus: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        return self.jobs or 8

    def run(self, items: Sequence[Item], task: Task) -> Iterator[tuple[Item, Failure | None]]:
        waiting: dict[Any, Item] = {}
        try:
            waiting |= zip(self._submitted(items, task), items, strict=True)
            while waiting:
                for job in [job for job in waiting if job.done()]:
                    item = waiting.pop(job)
                    yield item, _outcome(job, item)
                if waiting:
                    time.sleep(_POLL_SECONDS)
        finally:
            for job in waiting:  # the command was interrupted: nobody waits for them
                job.cancel(check=False)
            shutil.rmtree(task.folder.root / _FOLDER, ignore_errors=True)

    def _submitted(self, items: Sequence[Item], task: Task) -> list[Any]:
        import submitit

        settings = dict(self.settings)
        cluster = settings.pop("cluster", "slurm")
        executor = submitit.AutoExecutor(folder=task.folder.root / _FOLDER, cluster=cluster)
        try:
            executor.update_parameters(
                name="landscape",
                cpus_per_task=self.cpus,
                gpus_per_node=int(self.gpus),
                slurm_array_parallelism=self.jobs or 256,
                **settings,
            )
        except (TypeError, NameError, ValueError) as error:
            raise StudyError(f"--slurm: {error}; the names are those of submitit's update_parameters") from error
        jobs: list[Any] = executor.map_array(task, list(items))
        return jobs


def slurm_settings(given: Sequence[str]) -> dict[str, Any]:
    """Settings from ``KEY=VALUE``: submitit's names (``timeout_min``, ``slurm_partition``, …) and ``cluster``.

    >>> slurm_settings(["timeout_min=60", "slurm_partition=gpu"])
    {'timeout_min': 60, 'slurm_partition': 'gpu'}

    Raises:
        StudyError: It is none, or the cluster is unknown.
    """
    settings: dict[str, Any] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not (key and equals and value):
            raise StudyError(f"--slurm: expected KEY=VALUE, timeout_min=60 say, got {one!r}")
        settings[key] = int(value) if value.isdecimal() else value
    if settings.get("cluster", "slurm") not in _CLUSTERS:
        raise StudyError(f"--slurm: cluster is one of {', '.join(_CLUSTERS)}, got {settings['cluster']!r}")
    return settings


def _outcome(job: Any, item: Item) -> Failure | None:
    try:
        found: Failure | None = job.result()
    except Exception as error:  # the job was killed, ran out of time or of memory: Slurm's words say which
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return Failure(str(item), f"the job did not finish: {last}", str(error))
    return found
