"""Tasks: a pretrained model, the data to adapt it to, and the data to judge it on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from analyses.study.base import Settings, StudyError
from analyses.study.data_settings import DATA_KINDS
from analyses.study.importing import called, imported
from analyses.study.task_settings import OwnTask
from analyses.tasks.base import Examples, Task
from analyses.tasks.digits import Digits
from analyses.tasks.minilm_sentiment import MinilmSentiment
from analyses.tasks.own_data import OwnData

TASKS: dict[str, Callable[[Any, int, int | None], Task]] = {
    "digits": Digits,
    "minilm_sentiment": MinilmSentiment,
    **dict.fromkeys(DATA_KINDS, OwnData),
}


def build_task(settings: Settings, train_size: int, draw: int | None = None) -> Task:
    """The task that the settings name.

    Args:
        settings: Of the task.
        train_size: Number of training examples.
        draw: Draws the training examples; None for those of the settings' split.

    Raises:
        StudyError: The training set is too small or too large, a package with the task's data is missing, or a task of
            the user's cannot be imported.
    """
    if isinstance(settings, OwnTask):
        return _own(settings, train_size, draw)
    name: str = settings.name  # type: ignore[attr-defined]
    return TASKS[name](settings, train_size, draw)


def _own(settings: OwnTask, train_size: int, draw: int | None) -> Task:
    made = imported(settings.name, "task.name", "'package.module:Class'")
    with called(f"task: {settings.name} with settings {settings.settings}"):
        task: Task = made(settings.settings, train_size, draw)
    missing = [name for name in _METHODS if not callable(getattr(task, name, None))]
    if missing:
        raise StudyError(f"task.name: {settings.name} makes no task, which also has {', '.join(missing)}")
    return task


_METHODS = [name for name, value in vars(Task).items() if inspect.isfunction(value) and not name.startswith("_")]


__all__ = ["TASKS", "Examples", "Task", "build_task"]
