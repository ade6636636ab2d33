"""In which unit the losses of what is drawn are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import yaml

from reports.comparison import DESCRIPTION

NATS = "nats"
SQUARES = "squared units of the label"
OWN = "units of the loss"
_UNIT: ContextVar[str] = ContextVar("unit of losses", default=NATS)


def loss_unit() -> str:
    """The unit that is set."""
    return _UNIT.get()


@contextmanager
def units_of(folder: Path) -> Iterator[None]:
    """Inside, losses are in the unit of a folder's study or comparison.

    Of a regression these are squared ones of the label, of a task of the user's what its settings call them.
    """
    with unit(_said(folder) or _of_task(folder)):
        yield


@contextmanager
def unit(name: str) -> Iterator[None]:
    """Inside, losses are in this unit."""
    token = _UNIT.set(name)
    try:
        yield
    finally:
        _UNIT.reset(token)


def _said(folder: Path) -> str | None:
    """The unit that a comparison states, whose loss may be of the user's own; None in folders of before it did."""
    said = folder / DESCRIPTION
    found = json.loads(said.read_text()).get("unit") if said.is_file() else None
    return found if isinstance(found, str) else None


def _of_task(folder: Path) -> str:
    """The unit of the task that the folder's settings name; nats where they name none."""
    for name in ("study.yaml", "comparison.yaml"):
        if (folder / name).is_file():
            settings = yaml.safe_load((folder / name).read_text())
            task = settings.get("task") if isinstance(settings, dict) else None
            task = task if isinstance(task, dict) else {"name": task}
            if ":" in str(task.get("name")):
                return str(task.get("unit") or OWN)
            return SQUARES if task.get("name") == "regression" else NATS
    return NATS
