"""Disjoint training, validation and test parts of one's own examples: stratified, and with groups kept together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from sklearn.model_selection import train_test_split

from analyses.study.base import StudyError


def draw(
    pool: np.ndarray, size: int, strata: Sequence[Hashable] | None, seed: int, option: str
) -> tuple[np.ndarray, np.ndarray]:
    """Draw examples without replacement, each class by its share.

    Args:
        pool: (m,) numbers of the examples to draw from.
        size: How many.
        strata: Class of every example, by its number; None for a plain draw.
        seed: Of the draw.
        option: Setting that gives the size, for messages.

    Returns:
        The drawn numbers and the rest, both ascending.

    Raises:
        StudyError: There are too few examples, or fewer of a class than a stratified draw needs.
    """
    if size == len(pool):
        return np.sort(pool), pool[:0]
    if not 0 < size < len(pool):
        raise StudyError(f"{option}: expected 1 to {len(pool)} examples, as many as there are to draw from, got {size}")
    classes = None if strata is None else [strata[i] for i in pool]
    if classes is not None:
        counts = Counter(classes)
        rare = min(counts, key=lambda one: counts[one])
        if counts[rare] < 2:
            raise StudyError(
                f"{option}: only {counts[rare]} of the {len(pool)} examples to draw from has the label {rare!r}; a "
                "stratified split needs two of each: add examples or drop the class"
            )
        if min(size, len(pool) - size) < len(counts):
            raise StudyError(
                f"{option}: {size} of {len(pool)} examples leaves one part with fewer than the {len(counts)} classes; "
                f"expected {len(counts)} to {len(pool) - len(counts)}"
            )
    drawn, rest = train_test_split(pool, train_size=size, stratify=classes, random_state=seed)
    return np.sort(drawn), np.sort(rest)


def check_groups(groups: Sequence[Hashable], column: str) -> None:
    """Refuse examples that belong to no group: together they would be one.

    Raises:
        StudyError: A row has none.
    """
    for row, group in enumerate(groups, 1):
        if group is None or group == "" or (isinstance(group, float) and math.isnan(group)):
            raise StudyError(
                f"task.group: row {row} of column {column!r} holds {group!r}; expected a group in every row, one of "
                "its own for an example without others"
            )


def by_groups(
    pool: np.ndarray, sizes: dict[str, int], groups: Sequence[Hashable], seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Fill parts with whole groups in random order until each holds at least its size.

    Args:
        pool: (m,) numbers of the examples.
        sizes: Least number of examples by part.
        groups: Group of every example, by its number.
        seed: Of the order.

    Returns:
        Each part's examples, and the rest's, ascending.

    Raises:
        StudyError: No group is left for the other parts.
    """
    members: dict[Hashable, list[int]] = {}
    for number in pool.tolist():
        members.setdefault(groups[number], []).append(number)
    order = sorted(members, key=str)
    np.random.default_rng(seed).shuffle(order)
    parts: dict[str, np.ndarray] = {}
    for name, size in sizes.items():
        taken: list[int] = []
        while len(taken) < size and order:
            taken += members[order.pop()]
        if not order:
            raise StudyError(
                f"task.{name}_size: {size} examples leave no group for the other parts ({len(members)} groups); "
                "lower it"
            )
        parts[name] = np.array(sorted(taken))
    return parts, np.array(sorted(number for group in order for number in members[group]))
