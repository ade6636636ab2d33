"""One scale of losses for all panels of a picture: logarithmic where no loss is negative."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
_LEVELS = 21
_ABOVE = 1e-9
"""By which share of their range the last level lies above the largest loss."""


@dataclass(frozen=True)
class LossScale:
    """From the least to the largest loss of a picture.

    Attributes:
        low: Least loss; of those above 0 where the scale is logarithmic.
        high: Largest loss.
        logarithmic: Whether it is.
    """

    low: float
    high: float
    logarithmic: bool

    def cut(self, losses: ArrayLike) -> Array:
        """Losses with those beyond an end put there: an infinite one is drawn as the largest, 0 as the least."""
        return np.clip(np.asarray(losses, dtype=float), self.low, self.high)

    def heights(self, losses: ArrayLike) -> Array:
        """What is drawn of losses in three dimensions: their decimal logarithms or they themselves, `cut`."""
        return np.log10(self.cut(losses)) if self.logarithmic else self.cut(losses)

    def levels(self) -> Array:
        """Of contours, evenly spaced on the scale."""
        if self.logarithmic:
            return np.geomspace(self.low, self.high * (1 + _ABOVE), _LEVELS)
        wide = max(self.high - self.low, _ABOVE * max(1.0, abs(self.high)))
        return np.linspace(self.low, self.low + wide * (1 + _ABOVE), _LEVELS)

    def norm(self) -> Normalize:
        """Of colours."""
        return LogNorm() if self.logarithmic else Normalize()

    @property
    def words(self) -> str:
        """What is drawn, for an axis of heights."""
        return "log10 of the training loss" if self.logarithmic else "training loss"


def losses_of(records: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The records of a measure, or none where none of its losses is finite: there is nothing to draw then."""
    chosen = records[records["measure"] == measure]
    return chosen if np.isfinite(chosen["value"].astype(float)).any() else chosen.iloc[:0]


def loss_scale(losses: ArrayLike) -> LossScale:
    """The scale that holds all losses; infinite ones and NaN do not count.

    Raises:
        ValueError: No loss is finite.

    >>> loss_scale([0.0, 0.1, 10.0, float("inf")])
    LossScale(low=0.1, high=10.0, logarithmic=True)
    >>> loss_scale([-1.0, 3.0]).heights([-1.0, 5.0]).tolist()
    [-1.0, 3.0]
    """
    values = np.asarray(losses, dtype=float).ravel()
    values = values[np.isfinite(values)]
    if not len(values):
        raise ValueError("losses: expected some that are finite, got none")
    logarithmic = bool((values >= 0).all() and (values > 0).any())
    if logarithmic:
        values = values[values > 0]
    return LossScale(float(values.min()), float(values.max()), logarithmic)
