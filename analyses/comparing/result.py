"""What a comparison found: records that print, tabulate and draw themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analyses.records import is_rise, write_atomically, write_json, write_records
from reports.comparison import DESCRIPTION
from reports.units import NATS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Comparison:
    """Minima side by side.

    Attributes:
        records: Long form, one measured number a row, ``method`` the minimum's name; see `analyses.records`.
        names: Of the minima, in the order given.
        rho: l2 radius at which tables and figures look.
        failures: Reason by measurement that failed.
        notes: How numbers were obtained where that is out of the ordinary.
        own: What the user's measures recorded, by the records' ``measure``.
        unit: Of the losses.
    """

    records: pd.DataFrame
    names: tuple[str, ...]
    rho: float
    failures: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    own: tuple[str, ...] = ()
    unit: str = NATS

    @property
    def frame(self) -> pd.DataFrame:
        """The records; the radius asked for is in ``rho``, in the units of ``ball``."""
        return self.records

    @property
    def table(self) -> pd.DataFrame:
        """Plain numbers: a row a quantity, a column a minimum."""
        from reports.comparison.tables import summary

        return summary(self.records, self.names, self.own)

    @property
    def pairs(self) -> pd.DataFrame:
        """Plain numbers: a row a pair of minima, with their distance and the barriers between them."""
        from reports.comparison.tables import pairs

        return pairs(self.records)

    @property
    def caveats(self) -> list[str]:
        """What to bear in mind: different fits or scales, searches and solvers that did not agree."""
        from reports.comparison.caveats import caveats

        return [*self.notes, *caveats(self.records, self.names)]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Worst-case rise over the radius of the l2 ball, a line a minimum."""
        from reports.canvas import legend_of
        from reports.comparison.figures import plot_rises
        from reports.style import plot_context, styles_of
        from reports.units import unit

        if not bool(is_rise(self.records).any()):
            raise ValueError("plot: the comparison measured no worst-case rises; put sharpness among what")
        with styles_of(self.names), unit(self.unit), plot_context():
            drawn = plot_rises(self.records, ball="l2", ax=ax)
            legend_of(drawn, ax, 2)
        return drawn

    def to_markdown(self) -> str:
        """The tables as Markdown, with the caveats."""
        from reports.comparison.tables import as_markdown

        return as_markdown(self.records, self.names, self.caveats, self.own)

    def save(self, folder: str | Path, environment: Mapping[str, str] | None = None) -> Path:
        """Write records, figures, tables and the page.

        Returns:
            Path of ``report.html``.
        """
        from reports.comparison.page import write_comparison

        root = Path(folder)
        write_records(self.records, root / "records.parquet", environment)
        write_atomically(root / "records.csv", lambda temporary: self.records.to_csv(temporary, index=False))
        write_json(root / "environment.json", dict(environment or {}))
        write_json(
            root / DESCRIPTION,
            {
                "names": self.names,
                "rho": self.rho,
                "failures": dict(self.failures),
                "notes": self.notes,
                "own": self.own,
                "unit": self.unit,
            },
        )
        return write_comparison(root)

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"Comparison({', '.join(self.names)}; {len(self.records)} records, rho={self.rho:g}{failed})"

    def _repr_html_(self) -> str:
        from reports.comparison.tables import as_html

        return as_html(self.records, self.names, self.caveats, self.own)
