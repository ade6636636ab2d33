"""A minimum under measurement: its risk and its subspaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analyses.study import Cell, Study, StudyFolder
from analyses.study.plan import Plan
from analyses.tasks.base import Data
from analyses.training.devices import take_device
from analyses.training.runs import load_minimum, study_task
from bilora import Minimum
from bilora.adapters import AUXILIARY, PRIMARY
from landscape import EmpiricalRisk
from landscape.batches import to_device
from landscape.distributed import Ranks
from landscape.losses import Batch, zero_one

Progress = Callable[[int, int], None]
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Trained:
    """Where a minimum was trained.

    Attributes:
        study: Its study.
        cell: Its cell there.
        folder: The study's folder.
    """

    study: Study
    cell: Cell
    folder: StudyFolder

    @property
    def recording(self) -> Path:
        """Folder of what was recorded along the training."""
        return self.folder.recording(self.study, self.cell)


@dataclass(frozen=True)
class Subject:
    """A minimum under measurement.

    Attributes:
        plan: What is measured, and how.
        cell: Method (in a comparison the minimum's name), seed of all that is drawn, and number of training examples.
        minimum: The model and its spaces.
        task: Its data.
        device: Where it is measured.
        place: Folder for what measures leave beside their records.
        rank: Of the space that stands for the adapter's where there is none.
        trained: Its run; None for a minimum from elsewhere.
        settings: Of the measure at work, as its ``settings`` gives them.
        risks: Those made by `risk`, by split; they have checked the model.
    """

    plan: Plan
    cell: Cell
    minimum: Minimum
    task: Data
    device: torch.device
    place: Path
    rank: int
    trained: Trained | None = None
    settings: Any = None
    risks: dict[str, EmpiricalRisk] = field(default_factory=dict)

    def risk(self, split: str = "train") -> EmpiricalRisk:
        """Risk of the merged model over the adapted layers' weights, with the task's own loss if it names one."""
        if split not in self.risks:
            loss = getattr(self.task, "loss", None)
            self.risks[split] = self.minimum.risk(self.batches(split), loss=loss)
        return self.risks[split]

    def batches(self, split: str = "train") -> list[Batch]:
        """A split on the device; where several processes measure together, this one's share of it."""
        return [to_device(batch, self.device) for batch in Ranks().share(self.task.batches(split))]

    def errors(self, split: str = "train") -> EmpiricalRisk | None:
        """Share of wrong predictions as a risk, of a model that `risk` has checked; None where nothing is wrong."""
        error = getattr(self.task, "error", zero_one)
        return None if error is None else self.minimum.risk(self.batches(split), loss=error, check=False)

    @property
    def run(self) -> Trained:
        """Its run, for measures of what happened in training.

        Raises:
            ValueError: It was not trained by a study.
        """
        if self.trained is None:
            raise ValueError(f"{self.cell.method} was not trained by a study; this measure reads a study's run")
        return self.trained

    @property
    def graph_budget(self) -> int:
        """Bytes for the graphs that a curvature operator keeps."""
        return int(self.plan.measures.graph_gib * 2**30)


def load_subject(study: Study, cell: Cell, folder: StudyFolder) -> Subject:
    """Load a run's minimum with its task."""
    minimum, device = load_minimum(study, cell, folder), take_device(study.device)
    minimum.model.to(device)
    place, trained = folder.measurements(study, cell), Trained(study, cell, folder)
    return Subject(study, cell, minimum, study_task(study, cell), device, place, study.adapters.r, trained)


def low_rank_factors(subject: Subject, adapter: str) -> dict[str, tuple[Tensor, Tensor]]:
    """An adapter's (A, B) by weight; for methods without one, those of the best rank-r fit of the update."""
    if adapter in subject.minimum.factors:
        return subject.minimum.factors[adapter]
    rank, factors = subject.rank, {}
    for name, update in subject.minimum.updates.items():
        left, singular, right = torch.linalg.svd(update, full_matrices=False)
        factors[name] = (right[:rank], left[:, :rank] * singular[:rank])
    return factors


def adapters_with_space(subject: Subject) -> list[str]:
    """The auxiliary, unless it ends at zero and so without a space, and the primary."""
    auxiliary = subject.minimum.factors.get(AUXILIARY, {})
    return [AUXILIARY, PRIMARY] if any(bool(b.any()) for _, b in auxiliary.values()) else [PRIMARY]
