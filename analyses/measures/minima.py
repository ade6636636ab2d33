"""A minimum under measurement: its risk, its subspaces, and the vectors that earlier measurements left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from analyses.records import read_records, write_atomically
from analyses.study import Cell, Study, StudyFolder
from analyses.tasks import Task, build_task
from analyses.training.devices import take_device
from analyses.training.runs import load_minimum
from bilora import Minimum
from landscape import EmpiricalRisk
from landscape.batches import to_device

Progress = Callable[[int, int], None]
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A minimum under measurement."""

    study: Study
    cell: Cell
    folder: StudyFolder
    minimum: Minimum
    task: Task
    device: torch.device

    def risk(self, split: str = "train", **options: Any) -> EmpiricalRisk:
        """Risk of the merged model over the adapted layers' weights."""
        batches = [to_device(batch, self.device) for batch in self.task.batches(split)]
        return self.minimum.risk(batches, **options)

    @property
    def graph_budget(self) -> int:
        """Bytes for the graphs that a curvature operator keeps."""
        return int(self.study.measures.graph_gib * 2**30)


def load_subject(study: Study, cell: Cell, folder: StudyFolder) -> Subject:
    """Load a run's minimum with its task."""
    minimum, device = load_minimum(study, cell, folder), take_device(study.device)
    minimum.model.to(device)
    return Subject(study, cell, folder, minimum, build_task(study.task, cell.train_size), device)


def store_vectors(subject: Subject, kind: str, vectors: Mapping[str, Tensor]) -> None:
    """Keep vectors of weight space beside a measurement's records, for the measurements that build on them."""
    contiguous = {name: vector.contiguous() for name, vector in vectors.items()}
    write_atomically(_vectors_path(subject, kind), partial(save_file, contiguous))


def measured_vectors(subject: Subject, kind: str) -> dict[str, Tensor]:
    """What `store_vectors` kept."""
    return load_file(_vectors_path(subject, kind), device=str(subject.device))


def lanczos_eigenvalues(subject: Subject) -> dict[int, float]:
    """The Hessian eigenvalues whose eigenvectors the measurement ``curvature`` kept, by index from 1."""
    records = read_records(subject.folder.measurement(subject.study, subject.cell, "curvature"))
    chosen = records[(records["measure"] == "hessian_eigenvalue") & (records["algorithm"] == "lanczos")]
    return {int(k): float(value) for k, value in zip(chosen["index"], chosen["value"], strict=True)}


def _vectors_path(subject: Subject, kind: str) -> Path:
    return subject.folder.measurement(subject.study, subject.cell, kind).with_suffix(".safetensors")


def low_rank_factors(subject: Subject, adapter: str) -> dict[str, tuple[Tensor, Tensor]]:
    """An adapter's (A, B) by weight; for methods without one, those of the best rank-r fit of the update."""
    if adapter in subject.minimum.factors:
        return subject.minimum.factors[adapter]
    rank, factors = subject.study.adapters.r, {}
    for name, update in subject.minimum.updates.items():
        left, singular, right = torch.linalg.svd(update, full_matrices=False)
        factors[name] = (right[:rank], left[:, :rank] * singular[:rank])
    return factors
