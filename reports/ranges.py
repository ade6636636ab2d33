"""Which values a measure can take: the interval of its mean ends there."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Range = tuple[float, float]
ANY: Range = (-math.inf, math.inf)
SHARE: Range = (0.0, 1.0)
_POSSIBLE: dict[str, Range] = {
    "angle_to_final": (0.0, 90.0),
    "cos_auxiliary_gradient": (-1.0, 1.0),
    "effective_examples": (1.0, math.inf),
    "recovered_share": (0.0, math.inf),
    **dict.fromkeys(
        (
            *("test_accuracy", "largest_share", "alignment_along_training"),
            *("captured_energy", "captured_energy_null", "captured_energy_optimum"),
            *("alignment_weighted", "alignment_expected", "alignment_optimum"),
        ),
        SHARE,
    ),
}


def possible(measure: str) -> Range:
    """The least and the largest value of a measure; infinite where there is none.

    >>> possible("largest_share")
    (0.0, 1.0)
    """
    return _POSSIBLE.get(measure, ANY)


def cut(ends: ArrayLike, within: ArrayLike) -> NDArray[np.float64]:
    """Ends of an interval, put where values are possible; NaN stays.

    >>> cut([0.4, 1.7], (0.0, 1.0)).tolist()
    [0.4, 1.0]
    """
    low, high = np.asarray(within, dtype=float)
    return np.clip(np.asarray(ends, dtype=float), low, high)
