"""A measure: what it computes at a minimum, on what its numbers depend, and where it applies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from analyses.measures.minima import Progress, Rows, Subject
from analyses.records import write_sealed
from analyses.study import Cell, Study, StudyFolder, fingerprint
from analyses.study.plan import Plan


def _nothing(plan: Plan) -> Any:
    return None


def _everywhere(study: Study, cell: Cell) -> bool:
    return True


@dataclass(frozen=True)
class Measure:
    """One kind of measurement; a new one is a file with such an object and a line in the registry.

    Attributes:
        name: Its name in settings, on the command line and in file names.
        run: Turns a minimum into rows of records.
        settings: What its numbers depend on beside the run, of plain data.
        needs: Measures whose files it reads; they are measured before it.
        applies: Whether it has something to measure at a cell.
        default_seeds: At how many seeds it runs where ``measures.seeds`` says nothing; None for all.
        recorded: Whether it reads what is recorded along training (`analyses.training.recording`).
        version: Raised when the numbers change for the same settings.
    """

    name: str
    run: Callable[[Subject, Progress], Rows]
    settings: Callable[[Plan], Any] = _nothing
    needs: tuple[Measure, ...] = ()
    applies: Callable[[Study, Cell], bool] = _everywhere
    default_seeds: int | None = None
    recorded: bool = False
    version: int = 1

    def key(self, plan: Plan) -> str:
        """Eight digits that change whenever its numbers at one minimum may."""
        recording = plan.measures.dynamics and plan.measures.dynamics.model_dump() if self.recorded else None
        return fingerprint([self.settings(plan), recording, [need.key(plan) for need in self.needs], self.version])

    def file(self, plan: Plan, place: Path) -> Path:
        """File of its records in a minimum's folder of measurements."""
        return place / f"{self.name}-{self.key(plan)}.parquet"

    def path(self, study: Study, cell: Cell, folder: StudyFolder) -> Path:
        """File of its records at a study's run."""
        return self.file(study, folder.measurements(study, cell))

    def keep(self, subject: Subject, vectors: Mapping[str, Tensor]) -> None:
        """Keep vectors of weight space beside the records, for measures that build on this one."""
        contiguous = {name: vector.contiguous() for name, vector in vectors.items()}
        write_sealed(self._vectors(subject), partial(save_file, contiguous))

    def kept(self, subject: Subject) -> dict[str, Tensor]:
        """What `keep` kept."""
        return load_file(self._vectors(subject), device=str(subject.device))

    def _vectors(self, subject: Subject) -> Path:
        return self.file(subject.plan, subject.place).with_suffix(".safetensors")

    def runs_at(self, study: Study, cell: Cell) -> bool:
        """Whether a study measures it at a cell."""
        if self.recorded and study.measures.dynamics is None:
            return False
        limit = study.measures.seeds.get(self.name, self.default_seeds)
        if isinstance(limit, Mapping):
            limit = limit.get(cell.method, 0)
        return (limit is None or cell.seed < limit) and self.applies(study, cell)
