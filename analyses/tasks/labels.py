"""The labels of data of one's own: which are classes, and the index of each."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analyses.study.base import StudyError


def check_classes(labels: Sequence[Any], column: str) -> None:
    """Refuse labels that name no class, or of which two are one.

    Raises:
        StudyError: One is missing, a list, or a number with digits after the point, or two differ in blanks alone.
    """
    whole = sum(isinstance(label, float) and label.is_integer() for label in labels)
    for row, label in enumerate(labels, 1):
        if isinstance(label, float) and label.is_integer() and whole < len(labels):
            continue  # whole numbers in a column with gaps; the gap is what to name
        if not isinstance(label, str | numbers.Integral | bool):
            raise StudyError(
                f"task.label: row {row} of column {column!r} holds {shown(label)}; expected a whole number or a name "
                "in every row (for numbers to predict, use task.name: regression; an empty cell, NA or None is read as "
                "missing)"
            )
    seen: dict[str, Any] = {}
    for label in set(labels):
        other = seen.setdefault(str(label).strip(), label)
        if other != label:
            raise StudyError(
                f"task.label: column {column!r} holds {sorted([str(label), str(other)])}, which differ in blanks or in "
                "type alone; write one of them everywhere"
            )


def shown(value: Any) -> str:
    """A value as messages have it."""
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else f"{value!r:.60}"


def plain(value: Any) -> Any:
    """A NumPy scalar as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def named(label: Any, names: Sequence[str]) -> Any:
    """The name of a class that a number, or each in a list, stands for where there are names."""
    if isinstance(label, list | tuple):
        return [named(one, names) for one in label]
    is_number = isinstance(label, int) and not isinstance(label, bool)
    return names[label] if names and is_number and 0 <= label < len(names) else label


def of_one_type(labels: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Labels by table, as texts where one file's are numbers and another's are names: 7 and "7" are one class."""
    kinds = {type(label) for own in labels.values() for label in own if label is not None}
    if str not in kinds or len(kinds) == 1 or kinds - {str, int, bool}:
        return dict(labels)
    return {table: [label if label is None else as_text(label) for label in own] for table, own in labels.items()}


def as_text(label: Any) -> str:
    """A label as files write it."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def known_classes(config: Any, labels: Sequence[Any]) -> dict[Any, int]:
    """Index of every label among the model's own, if it knows them all; else empty.

    Names are found in any case, ``true`` for True, say. A model without names, as made by
    ``num_labels``, knows its numbers.
    """
    own: dict[str, int] = getattr(config, "label2id", None) or {}
    distinct = set(labels)
    if all(str(label) in own for label in distinct):
        return {label: own[str(label)] for label in distinct}
    folded = {name.casefold(): index for name, index in own.items()}
    keys = {str(label).casefold(): label for label in distinct}
    if len(folded) == len(own) and len(keys) == len(distinct) and keys.keys() <= folded.keys():
        return {label: folded[key] for key, label in keys.items()}
    whole = all(isinstance(label, int) and not isinstance(label, bool) for label in distinct)
    if not has_names(config) and whole and all(0 <= label < len(own) for label in distinct):
        return {label: int(label) for label in distinct}
    return {}


def has_names(config: Any) -> bool:
    """Whether a model names its classes, rather than numbers them as ``LABEL_0`` and so on."""
    own: dict[str, int] = getattr(config, "label2id", None) or {}
    return own != {f"LABEL_{index}": index for index in range(len(own))}


def classes_of(labels: Sequence[Any], column: str, known: Mapping[Any, int], names: Sequence[str]) -> dict[Any, int]:
    """Index of every label: the ``known`` one, else that of the data's own ``names``, else in their order.

    Raises:
        StudyError: There is one class alone.
    """
    distinct = set(labels)
    if len(distinct) < 2:
        raise StudyError(f"task.label: column {column!r} holds one class alone, {next(iter(distinct))!r}")
    if known:
        return dict(known)
    if names:
        return {name: index for index, name in enumerate(names)}
    return {label: index for index, label in enumerate(sorted(distinct, key=lambda one: (isinstance(one, str), one)))}


def numbers_of(labels: Sequence[Any], column: str) -> list[float]:
    """Labels of a regression.

    Raises:
        StudyError: A label is no finite number.
    """
    for row, label in enumerate(labels, 1):
        if not isinstance(label, numbers.Real) or not math.isfinite(label):
            raise StudyError(f"task.label: row {row} of column {column!r} holds {label!r}; expected a finite number")
    return [float(label) for label in labels]
