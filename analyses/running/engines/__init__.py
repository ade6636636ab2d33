"""Engines that work on the cells of a study: this process, others beside it, a Ray cluster, or Slurm."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from shutil import which
from typing import Any

from analyses.running.engines.local import LocalEngine, SequentialEngine
from analyses.running.engines.on_ray import RayEngine
from analyses.running.engines.on_slurm import SlurmEngine, slurm_settings
from analyses.running.executors import Engine
from analyses.study import StudyError

LOCAL_JOBS = 2

__all__ = ["LOCAL_JOBS", "LocalEngine", "RayEngine", "SequentialEngine", "SlurmEngine", "engine_of"]


def engine_of(
    name: str, *, jobs: int | None = None, cpus: int = 1, gpus: float = 0.0, slurm: Sequence[str] = ()
) -> Engine:
    """The engine that the command line asks for.

    Args:
        name: ``joblib``, ``sequential``, ``ray`` or ``slurm``.
        jobs: Most cells at a time; by default two on this machine, as many as fit on a cluster.
        cpus: Processors that a cell reserves on a cluster; it computes with one.
        gpus: GPUs that it reserves there, or a part of one.
        slurm: ``KEY=VALUE`` settings of Slurm; see `slurm_settings`.

    Raises:
        StudyError: An option that the engine has no use for, one out of range, or the engine is not installed.
    """
    if jobs is not None and jobs < 1:
        raise StudyError(f"--jobs: expected at least 1, got {jobs}")
    if cpus < 1:
        raise StudyError(f"--cpus-per-cell: expected at least 1, got {cpus}")
    if not 0 <= gpus < float("inf"):
        raise StudyError(f"--gpus-per-cell: expected a number of at least 0, got {gpus}")
    if slurm and name != "slurm":
        raise StudyError(f"--slurm: belongs to --executor slurm, got --executor {name}")
    _refuse_missing(name)
    if name in ("joblib", "sequential"):
        asked: dict[str, Any] = {"--cpus-per-cell": cpus != 1, "--gpus-per-cell": gpus != 0}
        for option in (option for option, given in asked.items() if given):
            raise StudyError(f"{option}: is reserved on a cluster; use it with --executor ray or slurm")
    if name == "sequential":
        if jobs not in (None, 1):
            raise StudyError(f"--jobs: --executor sequential does one cell at a time, got {jobs}; use joblib")
        return SequentialEngine()
    if name == "joblib":
        return LocalEngine(jobs or LOCAL_JOBS)
    if name == "ray":
        return RayEngine(jobs, cpus, gpus)
    if gpus != int(gpus):
        raise StudyError(f"--gpus-per-cell: Slurm reserves whole GPUs, got {gpus}; use --executor ray for parts")
    settings = slurm_settings(slurm)
    if settings.get("cluster", "slurm") == "slurm" and which("sbatch") is None:
        raise StudyError("--executor slurm: no sbatch here; run it where Slurm is, or try --slurm cluster=local")
    return SlurmEngine(jobs, cpus, gpus, settings)


def _refuse_missing(name: str) -> None:
    """Refuse an engine whose package is not here, before any work."""
    for executor, package, extra in (("ray", "ray", "cluster"), ("slurm", "submitit", "slurm")):
        if name == executor and find_spec(package) is None:
            raise StudyError(f"--executor {name}: {package} is not installed; pip install 'bilora-landscape[{extra}]'")
