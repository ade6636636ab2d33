"""Algorithms that know an operator only by its products."""

from landscape.algorithms.lanczos import lanczos
from landscape.algorithms.power_iteration import power_iteration

__all__ = ["lanczos", "power_iteration"]
