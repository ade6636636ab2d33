"""Bases and directions that span nothing: refused by name, or the number that a space of no dimension has."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from landscape import (
    BasisSubspace,
    DenseOperator,
    Layout,
    ProjectedOperator,
    captured_energy,
    filter_normalize,
    orthonormal_basis,
    principal_angles,
    split_direction,
    subspace_overlap,
    trajectory_plane,
)
from landscape.subspaces.alignment import block_spectra, top_singular_bases
from landscape.subspaces.first_order import first_order_optimum
from landscape.subspaces.restriction import restricted_curvature

EYE = torch.eye(3)
NAN = torch.full((3, 1), math.nan)
LAYOUT = Layout(("w", "b"), (torch.Size([2, 2]), torch.Size([2])))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: captured_energy(torch.ones(3, 2), 5 * EYE[:, :1]), "expected orthonormal columns"),
        (lambda: orthonormal_basis(torch.tensor([[math.inf], [1.0]])), "matrix: expected finite columns"),
        (lambda: orthonormal_basis(torch.ones(3)), r"floating type, shape \(m, c\), got torch.float32 of shape \(3,\)"),
        (lambda: orthonormal_basis(torch.ones(3, 1, dtype=torch.long)), "got torch.int64"),
        (lambda: trajectory_plane(torch.tensor([[0, 0], [3, 0], [3, 1]])), "points: .* got numbers of torch.int64"),
        (lambda: filter_normalize(torch.ones(6, dtype=torch.long), torch.ones(6), LAYOUT), "direction: .* torch.int64"),
        (lambda: subspace_overlap(NAN, EYE[:, :1]), "orthonormal columns, but Q'Q differs from I by nan"),
        (lambda: BasisSubspace(NAN), "orthonormal columns"),
        (lambda: split_direction(NAN[:2, 0], torch.tensor([[1.0], [0.0]])), "direction: expected finite entries"),
        (lambda: block_spectra(LAYOUT, torch.ones(6)), r"matrices only, but 'b' has shape \(2,\)"),
        (lambda: top_singular_bases(LAYOUT, torch.ones(6), 1), r"matrices only, but 'b' has shape \(2,\)"),
        (lambda: first_order_optimum({"w": NAN}, 1, 0.1), "gradients of 'w': expected finite"),
        (lambda: first_order_optimum({"w": EYE}, 1.5, 0.1), "r: expected a count of at least 1, got 1.5"),
        (lambda: DenseOperator(torch.eye(5).long()), "matrix: expected a tensor of floating type"),
        (lambda: ProjectedOperator(DenseOperator(EYE), [1, 2]), "subspace: expected an orthonormal basis"),
    ],
)  # fmt: skip
def test_what_spans_nothing_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_space_of_no_dimension_overlaps_with_none() -> None:
    assert subspace_overlap(EYE[:, :1], EYE[:, :0]) == 0
    assert captured_energy(torch.ones(3, 2), EYE[:, :0]) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_bases_of_two_precisions_are_compared_in_the_finer(dtype: torch.dtype) -> None:
    a = torch.eye(10)[:, :3]
    assert float(principal_angles(a, a.to(dtype)).max()) == pytest.approx(0, abs=1e-6)
    assert subspace_overlap(a.to(dtype), a) == pytest.approx(1)


def test_a_basis_stands_for_its_span() -> None:
    operator, basis = DenseOperator(torch.diag(torch.tensor([8.0, 2.0, 1.0]))), EYE[:, 1:]
    vector: Tensor = torch.randn(3)
    expected = ProjectedOperator(operator, BasisSubspace(basis)).matvec(vector)
    torch.testing.assert_close(ProjectedOperator(operator, basis).matvec(vector), expected)
    ratios = restricted_curvature(operator, basis, torch.tensor([8.0, 2.0])).ratios
    assert ratios.tolist() == pytest.approx([0.25, 0.5])
