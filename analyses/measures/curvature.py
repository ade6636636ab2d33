"""Top eigenpairs of the Hessian, by three solvers that check each other."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

from analyses.measures.base import Measure
from analyses.measures.minima import Progress, Rows, Subject
from analyses.study import Cell, Study
from landscape import EigenResult, HessianOperator, lanczos, power_iteration
from landscape.backends.pyhessian import pyhessian_eigenvalues


def curvature(subject: Subject, progress: Progress) -> Rows:
    """Top eigenpairs by Lanczos; the eigenvectors are kept."""
    settings, seed = subject.plan.measures.curvature, subject.cell.seed
    operator = HessianOperator(subject.risk(), graph_budget=subject.graph_budget)
    result, seconds = _timed(lambda: lanczos(operator, settings.k, which="LM", tol=settings.lanczos_tol, seed=seed))
    yield from _rows("lanczos", result, seconds)
    vectors = {"eigenvalues": result.eigenvalues.double(), "eigenvectors": result.eigenvectors.T}
    CURVATURE.keep(subject, vectors)
    progress(1, 1)


def by_power_iteration(subject: Subject, progress: Progress) -> Rows:
    """The same by power iteration, from another start."""
    settings, seed = subject.plan.measures.curvature, subject.cell.seed + 1
    operator = HessianOperator(subject.risk(), graph_budget=subject.graph_budget)
    result, seconds = _timed(
        lambda: power_iteration(
            operator, settings.k, tol=settings.power_tol, max_matvecs=settings.power_matvecs, seed=seed
        )
    )
    yield from _rows("power_iteration", result, seconds)
    progress(1, 1)


def by_pyhessian(subject: Subject, progress: Progress) -> Rows:
    """The same by PyHessian, which we did not write."""
    k, seed, risk = subject.plan.measures.curvature.k, subject.cell.seed, subject.risk()
    yield from _rows("pyhessian", *_timed(lambda: pyhessian_eigenvalues(risk, k, tol=1e-4, seed=seed)))
    progress(1, 1)


def eigenpairs(subject: Subject) -> tuple[Tensor, Tensor]:
    """What `curvature` kept: eigenvalues (k,) float64, descending in magnitude, and eigenvectors (k, n)."""
    kept = CURVATURE.kept(subject)
    return kept["eigenvalues"], kept["eigenvectors"]


def is_third_opinion_cell(study: Study, cell: Cell) -> bool:
    """Whether PyHessian runs at this cell: the first of the study, of Bi-LoRA if that is audited."""
    if not study.measures.third_opinion:
        return False
    method = "bilora" if "bilora" in study.methods else next(iter(study.methods))
    return cell == Cell(method, 0, study.train_sizes[0])


def _timed(solve: Callable[[], EigenResult]) -> tuple[EigenResult, float]:
    began = time.perf_counter()
    result = solve()
    return result, time.perf_counter() - began


def _rows(algorithm: str, result: EigenResult, seconds: float) -> Rows:
    for index in range(len(result.eigenvalues)):
        common = {"index": index + 1, "algorithm": algorithm, "subspace": "full"}
        cost = {"seconds": seconds, "num_passes": result.num_matvecs}
        value, residual = float(result.eigenvalues[index]), float(result.residuals[index])
        yield common | cost | {"measure": "hessian_eigenvalue", "value": value}
        yield common | {"measure": "hessian_residual", "value": residual}


CURVATURE = Measure(
    "curvature", curvature, lambda plan: plan.measures.curvature.model_dump(include={"k", "lanczos_tol"})
)
POWER_ITERATION = Measure(
    "power_iteration",
    by_power_iteration,
    lambda plan: plan.measures.curvature.model_dump(include={"k", "power_tol", "power_matvecs"}),
)
PYHESSIAN = Measure("pyhessian", by_pyhessian, lambda plan: plan.measures.curvature.k, applies=is_third_opinion_cell)
