"""Curvature and sharpness of a model's loss, and their alignment with low-rank subspaces.

>>> import torch
>>> model = torch.nn.Linear(2, 2)
>>> risk = EmpiricalRisk(model, [(torch.eye(2), torch.tensor([0, 1]))])
>>> lanczos(HessianOperator(risk), k=2).eigenvalues.shape
torch.Size([2])
"""

from landscape.algorithms import estimate_trace, lanczos, power_iteration, spectral_density
from landscape.algorithms.results import EigenResult, SpectralDensity, TraceResult
from landscape.losses import (
    LabelLoss,
    binary_cross_entropy,
    cross_entropy,
    cross_entropy_of,
    mse,
    next_token_cross_entropy,
    token_cross_entropy,
    zero_one,
)
from landscape.operators import (
    DenseOperator,
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    ProjectedOperator,
    RestrictedOperator,
    SymmetricOperator,
)
from landscape.params import Layout, select_parameters
from landscape.perturbation import perturbed
from landscape.risk import EmpiricalRisk
from landscape.sharpness import (
    AverageSharpnessResult,
    MSharpnessResult,
    OwnWorstCases,
    QuadraticGap,
    SharpnessResult,
    TrustRegionResult,
    average_sharpness,
    join_curve,
    m_sharpness,
    quadratic_gap,
    sharpness_curve,
    trust_region_maximum,
    worst_case_sharpness,
)
from landscape.subspaces import (
    BasisSubspace,
    LowRankSubspace,
    Subspace,
    captured_energy,
    chordal_distance,
    grassmann_distance,
    orthonormal_basis,
    principal_angles,
    subspace_overlap,
)
from landscape.subspaces.alignment import (
    AlignmentResult,
    Share,
    alignment,
    block_spectra,
    top_singular_bases,
    weighted_capture,
)
from landscape.subspaces.first_order import (
    FactorPerturbation,
    FirstOrderOptimum,
    LowRankPair,
    factor_perturbation,
    first_order_optimum,
)
from landscape.subspaces.restriction import RestrictedCurvature, restricted_curvature
from landscape.surfaces import LossLine, LossSurface, loss_line, loss_surface
from landscape.surfaces.directions import (
    TrajectoryPlane,
    filter_normalize,
    random_direction,
    split_direction,
    trajectory_plane,
)
from landscape.surfaces.paths import BezierPath, LossPath, bezier_path, linear_path
from landscape.surfaces.points import losses_at

__all__ = [
    "AlignmentResult",
    "AverageSharpnessResult",
    "BasisSubspace",
    "BezierPath",
    "DenseOperator",
    "EigenResult",
    "EmpiricalFisherOperator",
    "EmpiricalRisk",
    "FactorPerturbation",
    "FirstOrderOptimum",
    "GGNOperator",
    "HessianOperator",
    "LabelLoss",
    "Layout",
    "LossLine",
    "LossPath",
    "LossSurface",
    "LowRankPair",
    "LowRankSubspace",
    "MSharpnessResult",
    "OwnWorstCases",
    "ProjectedOperator",
    "QuadraticGap",
    "RestrictedCurvature",
    "RestrictedOperator",
    "Share",
    "SharpnessResult",
    "SpectralDensity",
    "Subspace",
    "SymmetricOperator",
    "TraceResult",
    "TrajectoryPlane",
    "TrustRegionResult",
    "alignment",
    "average_sharpness",
    "bezier_path",
    "binary_cross_entropy",
    "block_spectra",
    "captured_energy",
    "chordal_distance",
    "cross_entropy",
    "cross_entropy_of",
    "estimate_trace",
    "factor_perturbation",
    "filter_normalize",
    "first_order_optimum",
    "grassmann_distance",
    "join_curve",
    "lanczos",
    "linear_path",
    "loss_line",
    "loss_surface",
    "losses_at",
    "m_sharpness",
    "mse",
    "next_token_cross_entropy",
    "orthonormal_basis",
    "perturbed",
    "power_iteration",
    "principal_angles",
    "quadratic_gap",
    "random_direction",
    "restricted_curvature",
    "select_parameters",
    "sharpness_curve",
    "spectral_density",
    "split_direction",
    "subspace_overlap",
    "token_cross_entropy",
    "top_singular_bases",
    "trajectory_plane",
    "trust_region_maximum",
    "weighted_capture",
    "worst_case_sharpness",
    "zero_one",
]
