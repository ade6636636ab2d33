"""Curvature and sharpness of a model's loss, and their alignment with low-rank subspaces.

>>> import torch
>>> model = torch.nn.Linear(2, 2)
>>> risk = EmpiricalRisk(model, [(torch.eye(2), torch.tensor([0, 1]))])
>>> lanczos(HessianOperator(risk), k=2).eigenvalues.shape
torch.Size([2])
"""

from landscape.algorithms import lanczos, power_iteration
from landscape.operators import DenseOperator, HessianOperator, SymmetricOperator
from landscape.params import Layout, select_parameters
from landscape.perturbation import perturbed
from landscape.results import EigenResult, SharpnessResult
from landscape.risk import EmpiricalRisk
from landscape.sharpness import worst_case_sharpness
from landscape.subspaces import (
    BasisSubspace,
    LowRankSubspace,
    Subspace,
    captured_energy,
    orthonormal_basis,
    principal_angles,
    subspace_overlap,
)

__all__ = [
    "BasisSubspace",
    "DenseOperator",
    "EigenResult",
    "EmpiricalRisk",
    "HessianOperator",
    "Layout",
    "LowRankSubspace",
    "SharpnessResult",
    "Subspace",
    "SymmetricOperator",
    "captured_energy",
    "lanczos",
    "orthonormal_basis",
    "perturbed",
    "power_iteration",
    "principal_angles",
    "select_parameters",
    "subspace_overlap",
    "worst_case_sharpness",
]
