"""Cells as an array of Slurm jobs, through submitit."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Any

from analyses.running.executors import Failure, Item, Task
from analyses.study import StudyError

_FOLDER = ".slurm"
_JOBS = "jobs"
"""In this folder, the numbers of Slurm's jobs that are waited for."""
_POLL_SECONDS = 1.0
_TIMEOUT_MIN = 24 * 60
"""Of a job, where the settings do not say: submitit's own, 2 and 5 minutes, end most trainings."""
_LOCAL_JOBS = 2
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
        place = task.folder.root / _FOLDER
        _cancel_left(place / _JOBS)
        shutil.rmtree(place, ignore_errors=True)
        left, waiting = list(items), dict[Any, Item]()
        array = self.settings.get("cluster", "slurm") == "slurm"
        try:
            executor = self._executor(place)
            while left or waiting:
                # Slurm keeps to the limit of an array by itself; processes of this machine begin as they are submitted.
                free = len(left) if array else self._at_a_time - len(waiting)
                begun, left = left[:free], left[free:]
                if begun:
                    waiting |= zip(_submitted(executor, task, begun), begun, strict=True)
                if begun and array:
                    (place / _JOBS).write_text("\n".join(job.job_id for job in waiting))
                for job in [job for job in waiting if job.done()]:
                    item = waiting.pop(job)
                    yield item, _outcome(job, item)
                if waiting:
                    time.sleep(_POLL_SECONDS)
        finally:
            for job in waiting:  # the command was interrupted: nobody waits for them
                job.cancel(check=False)
            shutil.rmtree(place, ignore_errors=True)

    @property
    def _at_a_time(self) -> int:
        """Jobs beside each other on this machine."""
        return self.jobs or _LOCAL_JOBS

    def _executor(self, place: Path) -> Any:
        import submitit

        settings = {"timeout_min": _TIMEOUT_MIN} | dict(self.settings)
        cluster = settings.pop("cluster", "slurm")
        executor = submitit.AutoExecutor(folder=place, cluster=cluster)
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
        return executor


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


def _submitted(executor: Any, task: Task, items: Sequence[Item]) -> list[Any]:
    """Jobs of items, in their order.

    Raises:
        StudyError: Slurm takes none: no such partition, an array above its limit.
    """
    from submitit.core.utils import FailedJobError

    try:
        jobs: list[Any] = executor.map_array(task, list(items))
    except FailedJobError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise StudyError(f"--slurm: Slurm does not take the jobs: {reason}") from error
    return jobs


def _cancel_left(jobs: Path) -> None:
    """Cancel the jobs of a command that was killed: nobody waits for them, and they work where this one will."""
    numbers = jobs.read_text().split() if jobs.is_file() else []
    if numbers and which("scancel"):
        subprocess.run(["scancel", *numbers], check=False, capture_output=True)


def _outcome(job: Any, item: Item) -> Failure | None:
    try:
        found: Failure | None = job.result()
    except Exception as error:  # the job was killed, ran out of time or of memory: Slurm's words say which
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return Failure(str(item), f"the job did not finish: {last}", str(error))
    return found
