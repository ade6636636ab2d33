"""Objects of the user's own code by their places."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from analyses.study.base import StudyError


def imported(place: str, argument: str, expected: str) -> Any:
    """What stands at a place, ``package.module:NAME``.

    Args:
        place: Where.
        argument: Who names it, for errors.
        expected: What it should have been, for errors.

    Raises:
        StudyError: There is nothing, or the module raises something while it is imported.
    """
    module, sign, name = place.rpartition(":")
    if not (module and sign and name):
        raise StudyError(f"{argument}: expected {expected}, got {place!r}")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module does
        raise StudyError(f"{argument}: cannot import {place!r}, expected {expected}: {in_words(error)}") from error


@contextmanager
def called(what: str) -> Iterator[None]:
    """Inside runs the user's code: what it raises becomes a sentence, with the line that raised it.

    Raises:
        StudyError: It raises something.
    """
    try:
        yield
    except StudyError:
        raise
    except Exception as error:
        raise StudyError(f"{what} raises {in_words(error)}") from error


def in_words(error: Exception) -> str:
    """Kind, first line and place of an exception of somebody else's code."""
    reason = (str(error).strip() or "without a word").splitlines()[0]
    if isinstance(error, ImportError | AttributeError):
        return reason
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = "" if isinstance(error, SyntaxError) else f" ({Path(frame.filename).name}:{frame.lineno})"
    return f"{type(error).__name__}: {reason}{place}"
