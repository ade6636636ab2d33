"""The measures of a study, in the order in which they build on each other, and their files."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from analyses.measures.alignment import ALIGNMENT, ALONG_TRAINING, GAUSS_NEWTON
from analyses.measures.angles import ANGLES
from analyses.measures.base import Measure
from analyses.measures.curvature import CURVATURE, POWER_ITERATION, PYHESSIAN
from analyses.measures.dynamics import DYNAMICS
from analyses.measures.generalization import GENERALIZATION
from analyses.measures.landscapes import SURFACE, TRAJECTORY
from analyses.measures.minima import Progress, Subject, load_subject
from analyses.measures.sharpness import RECOVERY, SHARPNESS
from analyses.measures.spectrum import SPECTRUM
from analyses.records import DIVERGED, records_frame, write_records
from analyses.study import Cell, Study, StudyError, StudyFolder
from analyses.study.base import near
from analyses.study.importing import imported
from analyses.study.plan import Plan
from analyses.training.runs import environment, read_run

MEASURES = [
    GENERALIZATION,
    SHARPNESS,
    CURVATURE,
    POWER_ITERATION,
    PYHESSIAN,
    ALIGNMENT,
    GAUSS_NEWTON,
    SPECTRUM,
    ALONG_TRAINING,
    ANGLES,
    DYNAMICS,
    RECOVERY,
    SURFACE,
    TRAJECTORY,
]


def measures_of(study: Study) -> dict[str, Measure]:
    """The bundled measures and the study's own, by name.

    Raises:
        StudyError: One of ``measures.own`` cannot be imported or has a name that is taken, or ``measures.seeds``
            names none, or a method that the study does not have.
    """
    found = {measure.name: measure for measure in MEASURES}
    found |= own_measures(study.measures.own, found, "measures.own")
    for name, seeds in study.measures.seeds.items():
        if name not in found:
            raise StudyError(f"measures.seeds: expected some of {', '.join(found)}; got {name!r}{near(name, found)}")
        for method in seeds if isinstance(seeds, Mapping) else ():
            if method not in study.methods:
                expected = f"expected some of the study's methods ({', '.join(study.methods)})"
                raise StudyError(f"measures.seeds.{name}: {expected}; got {method!r}{near(method, study.methods)}")
    return found


def own_measures(places: Mapping[str, dict[str, Any]], taken: Collection[str], argument: str) -> dict[str, Measure]:
    """Measures of the user's, by name.

    Args:
        places: Their settings by place, ``package.module:NAME``.
        taken: Names that they may not have.
        argument: Where the places stand, for errors.

    Raises:
        StudyError: One cannot be imported, is no measure, or has a name that is taken.
    """
    found: dict[str, Measure] = {}
    for place, options in places.items():
        measure = replace(_imported(place, argument), settings=_given(options))
        if measure.name in {*taken, *found}:
            raise StudyError(f"{argument}: {place} is named {measure.name!r}, as another measure; rename it")
        found[measure.name] = measure
    return found


def _given(options: dict[str, Any]) -> Callable[[Plan], Any]:
    return lambda plan: options


def _imported(place: str, argument: str) -> Measure:
    measure = imported(place, argument, "'package.module:NAME'")
    if not isinstance(measure, Measure):
        raise StudyError(f"{argument}: {place} is a {type(measure).__name__}, expected a measures.base.Measure")
    if not re.fullmatch(r"[A-Za-z0-9_]+", measure.name):
        raise StudyError(f"{argument}: {place} is named {measure.name!r}; expected letters, digits and underscores")
    return measure


def with_needs(measures: Iterable[Measure]) -> list[Measure]:
    """The measures and those that they build on, each after what it needs."""
    ordered: dict[str, Measure] = {}
    for measure in measures:
        for need in with_needs(measure.needs):
            ordered[need.name] = need
        ordered[measure.name] = measure
    return list(ordered.values())


def measures_at(study: Study, cell: Cell) -> list[Measure]:
    """What a study measures at a cell."""
    return with_needs(measure for measure in measures_of(study).values() if measure.runs_at(study, cell))


class CellMeasurer:
    """Measures things at one run, whose minimum is loaded for the first that needs it.

    Args:
        study: The settings.
        cell: The run's cell.
        folder: The study's folder.
    """

    def __init__(self, study: Study, cell: Cell, folder: StudyFolder) -> None:
        self._study, self._cell, self._folder = study, cell, folder
        self._subject: Subject | None = None

    def measure(self, measure: Measure, progress: Progress) -> None:
        """Measure one thing and write its records, with the versions that made them.

        Of a run that diverged the first measure says so, and the others have nothing to say.
        """
        study, cell, folder = self._study, self._cell, self._folder
        fixed = {
            "study": study.name,
            "run": study.run_name(cell),
            "method": cell.method,
            "seed": cell.seed,
            "train_size": cell.train_size,
        }
        if read_run(folder.run(study, cell))["diverged"]:
            rows: Iterable[dict[str, Any]] = [{"measure": DIVERGED, "value": 1.0}] if measure is MEASURES[0] else []
        else:
            subject = self._subject or load_subject(study, cell, folder)
            # A measure of the user's own may leave the model changed.
            self._subject = subject if measure in MEASURES else None
            rows = measure.run(replace(subject, settings=measure.settings(study)), progress)
        write_records(records_frame(fixed | row for row in rows), measure.path(study, cell, folder), environment())
