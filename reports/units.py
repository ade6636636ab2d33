"""In which unit the losses of what is drawn are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import yaml

NATS = "nats"
SQUARES = "squared units of the label"
_UNIT: ContextVar[str] = ContextVar("unit of losses", default=NATS)


def loss_unit() -> str:
    """The unit that is set."""
    return _UNIT.get()


@contextmanager
def units_of(folder: Path) -> Iterator[None]:
    """Inside, losses are in the unit of a folder's study or comparison: of a regression, squared ones of the label."""
    token = _UNIT.set(SQUARES if _kind(folder) == "regression" else NATS)
    try:
        yield
    finally:
        _UNIT.reset(token)


def _kind(folder: Path) -> Any:
    """The task's name as the folder's settings give it; nothing where they do not."""
    for name in ("study.yaml", "comparison.yaml"):
        if (folder / name).is_file():
            settings = yaml.safe_load((folder / name).read_text())
            task = settings.get("task") if isinstance(settings, dict) else None
            return task.get("name") if isinstance(task, dict) else task
    return None
