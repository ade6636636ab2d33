"""What a study asks of a task, whatever its data and its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from landscape.losses import Batch

Progress = Callable[[int, int], None]
Examples = dict[str, Tensor]
"""Arguments of the model's forward pass, one row an example, among them ``labels`` (n,)."""


class Data(Protocol):
    """Examples in the batches over which they are measured, with ``loss`` and ``error`` as of `Task`."""

    def batches(self, split: str) -> Sequence[Batch]:
        """All examples of a split."""


class Task(Protocol):
    """Data and model for one training-set size.

    A class of it is called with its settings, the number of training examples, and the number of the draw of the
    training set, None for the settings' own split; it refuses what it cannot do with a ``StudyError``.

    It may have two attributes more: ``loss``, the loss of single examples as of `landscape.EmpiricalRisk` (default:
    cross-entropy of one label an example), and ``error``, 0 for a right prediction and 1 for a wrong one, or None where
    nothing is right or wrong (default: `landscape.zero_one`).
    """

    def dataset(self, split: str) -> list[Examples]:
        """The examples of ``train``, ``validation`` or ``test`` one by one, for `collate`."""

    def collate(self, examples: Sequence[Examples]) -> Examples:
        """One batch of examples of a data set."""

    def batches(self, split: str) -> list[Examples]:
        """All examples of a split in the batches over which they are measured."""

    def new_model(self, seed: int) -> PreTrainedModel:
        """The model before any training here; what has no weights yet gets random ones."""

    def create_base(self, path: Path, progress: Progress) -> None:
        """Save to ``path`` the model from which every method starts."""

    def load_base(self, path: Path) -> PreTrainedModel:
        """A model of this task from its folder."""
