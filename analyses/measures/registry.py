"""Measurements of one minimum: each kind turns a run into records."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from analyses.measures.alignment import alignment
from analyses.measures.angles import angles
from analyses.measures.curvature import curvature
from analyses.measures.dynamics import dynamics
from analyses.measures.generalization import generalization
from analyses.measures.landscapes import surface
from analyses.measures.minima import Progress, Rows, Subject, load_subject
from analyses.measures.sharpness import recovery, sharpness
from analyses.records import records_frame, write_records
from analyses.study import Cell, Study, StudyFolder
from analyses.training.runs import method_config
from bilora import METHODS
from bilora.methods.bilora import BiLora


def measure_cell(study: Study, cell: Cell, folder: StudyFolder, kind: str, progress: Progress) -> None:
    """Measure one kind at one run and write its records."""
    subject = load_subject(study, cell, folder)
    fixed = {
        "study": study.name,
        "run": study.run_name(cell),
        "method": cell.method,
        "seed": cell.seed,
        "train_size": cell.train_size,
    }
    rows = [fixed | row for row in MEASURES[kind](subject, progress)]
    write_records(records_frame(rows), folder.measurement(study, cell, kind))


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
