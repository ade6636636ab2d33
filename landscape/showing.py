"""How results show themselves: a short line, a table, a picture."""

from __future__ import annotations

import html
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_LISTED = 6
"""Entries of a vector that are spelled out."""


class Shown:
    """A frozen dataclass that prints in a line, tabulates and draws itself.

    pandas and matplotlib are imported only where a table or a picture is asked for.

    Attributes:
        table: Names of the vectors of equal length that are the columns of `to_frame`; without them it has one row, of
            all plain numbers.
        curve: Names of the vectors that are the axes of `plot`.
    """

    table: ClassVar[tuple[str, ...]] = ()
    curve: ClassVar[tuple[str, str] | None] = None

    def __repr__(self) -> str:
        parts = [f"{field.name}={brief(getattr(self, field.name))}" for field in fields(self)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(parts)})"

    def to_frame(self) -> pd.DataFrame:
        """The result as a table of plain numbers."""
        return optional("pandas").DataFrame(self._columns())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the result.

        Args:
            ax: Where; default a new figure.

        Raises:
            ValueError: It has nothing that could be drawn along an axis.
        """
        if self.curve is None:
            raise ValueError(f"{type(self).__name__} has no curve to draw; see to_frame()")
        across, up = self.curve
        ax = axes_or_new(ax)
        ax.plot(_numbers(getattr(self, across)), _numbers(getattr(self, up)), marker=".")
        ax.set_xlabel(across)
        ax.set_ylabel(up)
        return ax

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        if self.table:
            return {name: _numbers(getattr(self, name)) for name in self.table}
        plain = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: [value] for name, value in plain.items() if isinstance(value, bool | int | float | str)}

    def _repr_html_(self) -> str:
        """For notebooks, without pandas."""
        columns = self._columns()
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        rows = list(zip(*columns.values(), strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(brief(cell))}</td>" for cell in row) + "</tr>" for row in rows[:20]
        )
        more = f"<p>… {len(rows)} rows</p>" if len(rows) > 20 else ""
        line = html.escape(repr(self))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}<p><code>{line}</code></p>"


def brief(value: Any) -> str:
    """A value in a few characters: four digits, short vectors entry by entry, longer ones by their shape.

    >>> import torch
    >>> brief(torch.tensor([1.0, 2.5])), brief(torch.zeros(3, 40)), brief({"a": 1.0})
    ('[1, 2.5]', 'tensor of shape (3, 40)', '1 entry')
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Tensor):
        short = value.ndim == 0 or (value.ndim == 1 and len(value) <= _LISTED)
        return brief(value.tolist()) if short else f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{len(value)} {'entry' if len(value) == 1 else 'entries'}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        plain = len(value) <= _LISTED and all(isinstance(one, bool | int | float | str) for one in value)
        return f"[{', '.join(brief(one) for one in value)}]" if plain else f"{len(value)} parts"
    return str(value)


def kind_of(value: Any) -> str:
    """A value's type with its article."""
    name = type(value).__name__
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def axes_or_new(ax: Axes | None) -> Axes:
    """The axes, or those of a new figure."""
    return optional("matplotlib.pyplot").subplots(figsize=(3.35, 2.5), layout="constrained")[1] if ax is None else ax


def optional(name: str) -> ModuleType:
    """A package that only tables and pictures need.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"this needs {package}, which is not installed: pip install {package}") from error


def _numbers(values: Any) -> list[Any]:
    if not isinstance(values, Tensor):
        return list(values)
    return (values.double() if values.is_floating_point() else values).tolist()
