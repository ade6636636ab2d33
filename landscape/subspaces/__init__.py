"""Subspaces of weight space, and what they hold: `alignment`, `first_order` and `restriction` stand beside them."""

from landscape.subspaces.spaces import (
    KINDS,
    BasisSubspace,
    Kind,
    LowRankSubspace,
    Subspace,
    captured_energy,
    chordal_distance,
    grassmann_distance,
    orthonormal_basis,
    principal_angles,
    project_each,
    space_of,
    subspace_overlap,
)

__all__ = [
    "KINDS",
    "BasisSubspace",
    "Kind",
    "LowRankSubspace",
    "Subspace",
    "captured_energy",
    "chordal_distance",
    "grassmann_distance",
    "orthonormal_basis",
    "principal_angles",
    "project_each",
    "space_of",
    "subspace_overlap",
]
