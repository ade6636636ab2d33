"""Top eigenpairs of the Hessian, by up to three solvers."""

from __future__ import annotations

import time
from collections.abc import Callable

from analyses.measures.minima import Progress, Rows, Subject, store_vectors
from analyses.study import Cell, Study
from landscape import EigenResult, HessianOperator, lanczos, power_iteration
from landscape.backends.pyhessian import pyhessian_eigenvalues


def curvature(subject: Subject, progress: Progress) -> Rows:
    """Top eigenpairs by Lanczos, by power iteration, and on one cell of the study by PyHessian."""
    settings = subject.study.measures.curvature
    risk = subject.risk()
    operator = HessianOperator(risk, graph_budget=subject.graph_budget)
    seed = subject.cell.seed
    opinions: dict[str, Callable[[], EigenResult]] = {
        "lanczos": lambda: lanczos(operator, settings.k, which="LM", tol=settings.lanczos_tol, seed=seed),
        "power_iteration": lambda: power_iteration(
            operator, settings.k, tol=settings.power_tol, max_matvecs=settings.power_matvecs, seed=seed + 1
        ),
    }
    if is_third_opinion_cell(subject.study, subject.cell):
        opinions["pyhessian"] = lambda: pyhessian_eigenvalues(risk, settings.k, tol=1e-4, seed=seed)
    for number, (algorithm, solve) in enumerate(opinions.items()):
        began = time.perf_counter()
        result = solve()
        seconds = time.perf_counter() - began
        for index in range(settings.k):
            common = {"index": index + 1, "algorithm": algorithm, "subspace": "full"}
            cost = {"seconds": seconds, "num_passes": result.num_matvecs}
            value, residual = float(result.eigenvalues[index]), float(result.residuals[index])
            yield common | cost | {"measure": "hessian_eigenvalue", "value": value}
            yield common | {"measure": "hessian_residual", "value": residual}
        if algorithm == "lanczos":
            store_vectors(subject, "curvature", {"eigenvectors": result.eigenvectors.T})
        progress(number + 1, len(opinions))


def is_third_opinion_cell(study: Study, cell: Cell) -> bool:
    """Whether PyHessian runs at this cell: the first of the study, of Bi-LoRA if that is audited."""
    if not study.measures.third_opinion:
        return False
    method = "bilora" if "bilora" in study.methods else next(iter(study.methods))
    return cell == Cell(method, 0, study.train_sizes[0])
