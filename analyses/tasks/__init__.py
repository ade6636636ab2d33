"""Tasks: a pretrained model, the data to adapt it to, and the data to judge it on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from analyses.study.base import Settings
from analyses.tasks.base import Examples, Task
from analyses.tasks.digits import Digits
from analyses.tasks.minilm_sentiment import MinilmSentiment

TASKS: dict[str, Callable[[Any, int], Task]] = {"digits": Digits, "minilm_sentiment": MinilmSentiment}


def build_task(settings: Settings, train_size: int) -> Task:
    """The task that the settings name.

    Raises:
        StudyError: The training set is too small or too large, or a package with the task's data is missing.
    """
    name: str = settings.name  # type: ignore[attr-defined]
    return TASKS[name](settings, train_size)


__all__ = ["TASKS", "Examples", "Task", "build_task"]
