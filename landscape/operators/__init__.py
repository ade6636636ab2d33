"""Symmetric operators: known only by `matvec` and `matmat`."""

from landscape.operators.base import DenseOperator, SymmetricOperator
from landscape.operators.hessian import HessianOperator

__all__ = ["DenseOperator", "HessianOperator", "SymmetricOperator"]
