"""What measures ask of settings, be they a study's or a comparison's."""

from __future__ import annotations

from typing import Protocol

from analyses.study.measure_settings import MeasureSettings


class Plan(Protocol):
    """What is measured at a minimum, and how."""

    @property
    def measures(self) -> MeasureSettings:
        """Settings of the measures."""

    @property
    def rho(self) -> float:
        """Radius of the l2 ball that is looked at most closely; one of ``measures.worst_case.radii``."""
