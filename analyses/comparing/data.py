"""The examples on which minima are compared: of a study's task, of files, or of a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from analyses.running.drafting import as_options, task_of
from analyses.study import Study, StudyError
from analyses.study.base import near
from analyses.study.data_settings import DataKind
from analyses.study.importing import called
from analyses.study.importing import imported as object_at
from analyses.tasks import Task, build_task
from analyses.tasks.own_data import OwnData
from analyses.tasks.tables import columns, read_table
from landscape.batches import batch_size, map_tensors, read_batches
from landscape.losses import Batch, LabelLoss, PerExampleLoss, zero_one
from landscape.torch_losses import per_example

MOST_EXAMPLES = 256
"""Examples measured where no number is asked for."""


@dataclass(frozen=True)
class Examples:
    """Batches to measure on, with their loss.

    Attributes:
        train: Batches of the loss that is measured.
        test: Batches of the loss beside it; None for none.
        loss: Of single examples, as of `landscape.EmpiricalRisk`; None for its default.
        error: 0 for a right prediction and 1 for a wrong one; None where nothing is right or wrong.
    """

    train: Sequence[Batch]
    test: Sequence[Batch] | None = None
    loss: PerExampleLoss | None = None
    error: PerExampleLoss | None = zero_one

    def batches(self, split: str) -> Sequence[Batch]:
        """The batches of ``train`` or ``test``."""
        found = {"train": self.train, "test": self.test}[split]
        return found or ()

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are."""
        return ("train",) if self.test is None else ("train", "test")

    @property
    def count(self) -> int:
        """Number of examples of the measured loss."""
        return sum(batch_size(batch) for batch in self.train)

    def tensors(self) -> list[Tensor]:
        """All tensors of all batches, in their order."""
        found: list[Tensor] = []
        for split in self.splits:
            for batch in self.batches(split):
                map_tensors(batch, found.append)
        return found


def examples_of(
    batches: Iterable[Batch],
    test: Iterable[Batch] | None = None,
    loss: PerExampleLoss | None = None,
    error: PerExampleLoss | None = None,
) -> Examples:
    """Batches of the user's own; wrong predictions are counted under the default loss, or by ``error``."""
    read: dict[str, list[Batch]] = {}
    for name, given in {"train": batches, "test": test}.items():
        if given is not None or name == "train":
            try:
                read[name] = read_batches(given)
            except ValueError as problem:
                raise StudyError(f"{name} examples: {problem}") from problem
    try:
        meant = per_example(loss)
    except ValueError as problem:
        raise StudyError(str(problem)) from problem
    classes = meant is None or (isinstance(meant, LabelLoss) and meant.tokens in ("none", "places"))
    counted = zero_one if classes and meant is not zero_one else None
    return Examples(read["train"], read.get("test"), loss, error or counted)


def examples_of_study(study: Study, train_size: int | None = None) -> Examples:
    """Training and test examples of a study's task."""
    return _of_task(build_task(study.task, train_size or study.train_sizes[0]), has_test=True)


@dataclass(frozen=True)
class FileData:
    """Examples from files, read as a Hugging Face model reads them.

    Attributes:
        data: File or folder; see `analyses.study.data_settings.DataTask`.
        test: The same for the test examples; None for none.
        kind: Of task; None to tell from the columns.
        inputs: Column of the input; None to tell.
        label: Column of the label; None to tell.
        count: Examples to measure on; None for all, at most `MOST_EXAMPLES`.
        max_length: Tokens kept of each text.
    """

    data: str
    test: str | None = None
    kind: DataKind | None = None
    inputs: str | None = None
    label: str | None = None
    count: int | None = None
    max_length: int = 128

    def task(self, model: str) -> OwnData:
        """The task whose tokens and classes are those of a model's folder or name."""
        table = read_table(self.data, "--data")
        settings = task_of(model, self.data, table, self.kind, self.inputs, self.label)
        if settings.inputs[0] not in columns(table):
            meant = near(settings.inputs[0], columns(table)) or ";"
            there = ", ".join(columns(table))
            raise StudyError(f"--input: {self.data} has no column {settings.inputs[0]!r}{meant} it has {there}")
        rows = len(table[settings.inputs[0]])
        if self.count is not None and not 1 <= self.count <= rows:
            raise StudyError(f"--examples: expected 1 to {rows}, as many as {self.data} holds; got {self.count}")
        beside = self.test or self.data  # a split with a place of its own takes nothing from the training examples
        places = {"train": self.data, "validation": beside, "test": beside}
        changed = settings.model_copy(update={"data": places, "max_length": self.max_length})
        try:
            task = OwnData(changed, self.count or min(rows, MOST_EXAMPLES))
        except StudyError as error:
            raise StudyError(as_options(str(error), model="--tokenizer", train_sizes="--examples")) from error
        if not task.knows_classes:
            raise StudyError(
                f"--label: {model} names its classes {', '.join(task.class_names[:6])}, and {self.data} has "
                f"{', '.join(sorted(map(str, task.classes))[:6])}: which is which cannot be told; write the model's "
                "names into the data, or the data's into label2id and id2label of the model's config.json"
            )
        return task

    def examples(self, model: str) -> Examples:
        """The examples as a model reads them."""
        return _of_task(self.task(model), has_test=self.test is not None)

    def base(self, place: Path) -> nn.Module:
        """The plain model under an adapter, as it is; one without a head of its own gets one of the data's classes."""
        task = self.task(str(place))
        return task.finished_model() or task.new_model(task.settings.head_seed)


def examples_from_function(place: str) -> Examples:
    """Examples that a function of the user's returns.

    It returns batches, or a dictionary with ``train`` and optionally ``test``, ``loss`` and ``error``.
    """
    found = imported(place, "--data")()
    if isinstance(found, Mapping):
        parts = dict(found)
        if "train" not in parts or parts.keys() - {"train", "test", "loss", "error"}:
            raise StudyError(
                f"--data: {place} returned a dictionary of {', '.join(map(str, parts)) or 'nothing'}; expected train "
                "and optionally test, loss, error"
            )
        return examples_of(parts.pop("train"), **parts)
    return examples_of(found)


def imported(place: str, option: str) -> Callable[[], Any]:
    """A function of the user's by its place, ``module:function``."""
    found = object_at(place, option, "'module:function'")
    if not callable(found):
        raise StudyError(f"{option}: {place} is a {type(found).__name__}, expected a function")
    return partial(_called, found, place, option)


def _called(function: Callable[[], Any], place: str, option: str) -> Any:
    """What a function of the user's returns.

    Raises:
        StudyError: It raises something.
    """
    with called(f"{option}: {place}"):
        return function()


def _of_task(task: Task, *, has_test: bool) -> Examples:
    return Examples(
        task.batches("train"),
        task.batches("test") if has_test else None,
        getattr(task, "loss", None),
        getattr(task, "error", zero_one),
    )
