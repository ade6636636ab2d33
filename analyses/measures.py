"""Measurements of one minimum: each kind turns a run into records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from analyses.alignment import alignment
from analyses.angles import angles
from analyses.dynamics import dynamics
from analyses.landscapes import surface
from analyses.minima import Progress, Rows, Subject, load_subject, store_vectors
from analyses.records import records_frame, write_records
from analyses.runs import method_config, read_run
from analyses.sharpness import recovery, sharpness
from analyses.study import Cell, Study, StudyFolder
from bilora import METHODS
from bilora.adapters import PRIMARY
from bilora.methods.bilora import BiLora
from landscape import EigenResult, HessianOperator, lanczos, power_iteration
from landscape.backends.pyhessian import pyhessian_eigenvalues
from landscape.losses import zero_one


def measure_cell(study: Study, cell: Cell, folder: StudyFolder, kind: str, progress: Progress) -> None:
    """Measure one kind at one run and write its records."""
    subject = load_subject(study, cell, folder)
    fixed = {"study": study.name, "method": cell.method, "seed": cell.seed, "train_size": cell.train_size}
    rows = [fixed | row for row in MEASURES[kind](subject, progress)]
    write_records(records_frame(rows), folder.measurement(study, cell, kind))


def generalization(subject: Subject, progress: Progress) -> Rows:
    """Loss and accuracy on training and test examples, and what the training cost."""
    for split in ("train", "test"):
        yield {"measure": f"{split}_loss", "value": subject.risk(split).loss()}
        yield {"measure": f"{split}_accuracy", "value": 1 - subject.risk(split, loss=zero_one).loss()}
    run = read_run(subject.folder.run(subject.study, subject.cell))
    yield {"measure": "train_step_seconds", "value": run["step_seconds"]}
    yield {"measure": "trainable_parameters", "value": run["trainable_parameters"]}
    if PRIMARY in subject.minimum.factors:
        yield {"measure": "adapter_rank", "value": method_config(subject.study, subject.cell.method).r}
    progress(1, 1)


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
            common = {"k": index + 1, "algorithm": algorithm, "subspace": "full"}
            cost = {"seconds": seconds, "num_passes": result.num_matvecs}
            value, residual = float(result.eigenvalues[index]), float(result.residuals[index])
            yield common | cost | {"measure": "hessian_eigenvalue", "value": value}
            yield common | {"measure": "hessian_residual", "value": residual}
        if algorithm == "lanczos":
            store_vectors(subject, "curvature", {"eigenvectors": result.eigenvectors.T})
        progress(number + 1, len(opinions))


MEASURES: dict[str, Callable[[Subject, Progress], Rows]] = {
    "generalization": generalization,
    "curvature": curvature,
    "sharpness": sharpness,
    "recovery": recovery,
    "alignment": alignment,
    "angles": angles,
    "surface": surface,
    "dynamics": dynamics,
}
"""Kinds of measurement in the order in which they build on each other."""


NEEDS = {
    "alignment": ["curvature", "sharpness"],
    "angles": ["curvature"],
    "surface": ["curvature", "sharpness"],
}
"""Kinds whose vectors another kind builds on."""


def with_needs(kinds: Iterable[str]) -> list[str]:
    """The kinds and those they build on, in the order in which they are measured."""
    wanted = set(kinds)
    wanted |= {need for kind in wanted for need in NEEDS.get(kind, [])}
    return [kind for kind in MEASURES if kind in wanted]


def kinds_at(study: Study, cell: Cell) -> list[str]:
    """Kinds measured at a cell.

    Surfaces are pictures, and the first seed's are enough; only methods with an auxiliary have a space of their own in
    which a share of the worst case can be recovered.
    """
    left_out = set()
    if study.measures.surface is None or cell.seed != 0:
        left_out.add("surface")
    if study.measures.dynamics is None:
        left_out.add("dynamics")
    if not issubclass(METHODS[method_config(study, cell.method).method], BiLora):
        left_out.add("recovery")
    return [kind for kind in MEASURES if kind not in left_out]


def is_third_opinion_cell(study: Study, cell: Cell) -> bool:
    """Whether PyHessian runs at this cell: the first of the study, of Bi-LoRA if that is audited."""
    if not study.measures.third_opinion:
        return False
    method = "bilora" if "bilora" in study.methods else next(iter(study.methods))
    return cell == Cell(method, 0, study.train_sizes[0])
