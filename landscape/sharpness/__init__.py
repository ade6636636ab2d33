"""Sharpness of a minimum: how far the loss rises in a neighbourhood."""

from landscape.sharpness.worst_case import worst_case_sharpness

__all__ = ["worst_case_sharpness"]
