"""Minima found by different optimizers, side by side."""

from analyses.comparing.comparison import compare
from analyses.comparing.result import Comparison

__all__ = ["Comparison", "compare"]
