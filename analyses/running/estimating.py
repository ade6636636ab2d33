"""What a study will take, before it starts: cells, hours and bytes, from one timed pass of each kind."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from analyses.measures.registry import measures_at
from analyses.study import Study, StudyFolder
from analyses.study.cells import Cell
from analyses.tasks import build_task
from analyses.training.devices import take_device
from analyses.training.runs import method_config
from bilora.attaching import target_layers
from bilora.methods import method_class
from landscape import EmpiricalRisk, worst_case_sharpness

_PASSES_OF_A_SEARCH = 240
"""Of both searches in one ball with the default effort, in the median on the digits minima (docs/landscape.md)."""

_DEFAULT_EFFORT = 20 * 7
_PASSES_OF_A_PRODUCT = 2.5
_PRODUCTS_OF_CURVATURE = 80


@dataclass(frozen=True)
class Estimate:
    """Work that is left of a study; hours are good to a factor of about two.

    Attributes:
        cells: Runs that are not trained or not measured yet.
        hours: Of all of them with the given number of workers, without the cost of a step and the barriers.
        bytes: That they will add to the folder.
    """

    cells: int
    hours: float
    bytes: int

    def __str__(self) -> str:
        size = f"{self.bytes / 2**20:.0f} MiB" if self.bytes < 2**30 else f"{self.bytes / 2**30:.1f} GiB"
        took = f"{self.hours:.1f} hours" if self.hours >= 1 else f"{60 * self.hours:.0f} minutes"
        return f"{self.cells} cells, about {took}, {size}"


def estimate(study: Study, folder: StudyFolder, *, jobs: int) -> Estimate:
    """Time a step, a pass and a short search on the untrained model, and count what is left of the study."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers
    try:
        return _estimate(study, folder, jobs)
    finally:
        torch.set_num_threads(threads)


def _estimate(study: Study, folder: StudyFolder, jobs: int) -> Estimate:
    device = take_device(study.device)
    seconds = bytes_ = 0.0
    cells = 0
    for size in study.train_sizes:
        task = build_task(study.task, size, draw=0 if study.resample else None)
        model = task.new_model(0).to(device)
        names = target_layers(model, study.adapters.target_modules, study.adapters.modules_to_save)
        weights = dict(model.named_parameters())
        adapted = sum(weights[f"{name}.weight"].numel() for name in names)
        shapes = [weights[f"{name}.weight"].shape for name in names]
        whole = sum(p.numel() for p in model.parameters())
        batch = {k: v.to(device) for k, v in task.collate(task.dataset("train")[: study.training.batch_size]).items()}
        step = _seconds(lambda m=model, b=batch: m(**b).loss.backward())
        options = {"loss": loss} if (loss := getattr(task, "loss", None)) is not None else {}
        risk = EmpiricalRisk(
            model, task.batches("train"), params=[f"{n}.weight" for n in names], check=False, **options
        )
        whole_pass = _seconds(risk.loss_and_gradient)
        # Half of a search ascends single examples, whose passes cost more than their share.
        began = time.perf_counter()
        found = worst_case_sharpness(risk, study.claims.rho, steps=4, restarts=1, screened=16, max_passes=1)
        searched_pass = (time.perf_counter() - began) / found.num_passes
        for seed in range(study.seeds):
            for column in study.methods:
                cell = Cell(column, seed, size)
                missing = [m for m in measures_at(study, cell) if not m.path(study, cell, folder).exists()]
                trained = folder.run(study, cell).exists()
                cells += bool(missing) or not trained
                if not trained:
                    config = method_config(study, column)
                    passes = method_class(config.method).passes_per_step
                    seconds += step * passes * study.training_of(cell.method).num_steps(size)
                    adapters = 2 * sum(config.r * sum(shape) for shape in shapes)
                    bytes_ += 4 * (whole if config.method in ("full", "sam") or config.primary == "full" else adapters)
                searched, others, balls = _passes(study, {measure.name for measure in missing})
                seconds += searched * searched_pass + others * whole_pass
                bytes_ += 4 * adapted * balls
    return Estimate(cells, seconds / 3600 / jobs, int(bytes_))


def _passes(study: Study, measures: set[str]) -> tuple[float, float, int]:
    """Passes over the training data in searches and in other measures, and the balls of which maximisers are kept."""
    settings = study.measures.worst_case
    effort = min(1.0, settings.steps * settings.restarts / _DEFAULT_EFFORT)
    outside = sum(len(radii) for radii in settings.radii_by_ball.values()) if "sharpness" in measures else 0
    inside = 3 * len(settings.inside_radii) if "recovery" in measures else 0
    balls = outside + inside
    others = 0.0
    if "curvature" in measures:
        others += _PRODUCTS_OF_CURVATURE * _PASSES_OF_A_PRODUCT
    if "surface" in measures and study.measures.surface is not None:
        others += study.measures.surface.grid_points**2
    if "trajectory" in measures and study.measures.surface is not None:
        others += study.measures.surface.trajectory_points**2
    return balls * _PASSES_OF_A_SEARCH * effort, others, balls


def _seconds(work: object, repeats: int = 4) -> float:
    """The shortest of some runs of a function, the first of which warms up."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()  # type: ignore[operator]
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)
