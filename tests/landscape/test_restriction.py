"""Curvature inside a subspace, on quadratics whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from landscape import BasisSubspace, DenseOperator, Layout, LowRankSubspace, restricted_curvature

LAYOUT = Layout(("w",), (torch.Size((3, 4)),))
CURVATURES = torch.tensor([[9.0, 1.0, 2.0, 0.5], [-6.0, 4.0, 3.0, 0.1], [5.0, -8.0, 7.0, 0.2]], dtype=torch.float64)
FULL = torch.tensor([9.0, -8.0], dtype=torch.float64)


def coordinates(size: int, *chosen: int) -> dict[str, Tensor]:
    return {"w": torch.eye(size, dtype=torch.float64)[:, list(chosen)]}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("column", [-6.0, 4.0]), ("row", [-8.0, 4.0]), ("core", [4.0, 0.0]), ("tangent", [-8.0, -6.0])],
)
def test_a_quadratic_with_separate_coordinates(kind: str, expected: list[float]) -> None:
    """H is diagonal, the second row and the second column of W are free: the largest entries there are the answer."""
    operator = DenseOperator(torch.diag(CURVATURES.flatten()))
    space = LowRankSubspace(LAYOUT, coordinates(3, 1), coordinates(4, 1), kind)
    found = restricted_curvature(operator, space, FULL, tol=1e-8)
    assert found.eigenvalues.tolist() == pytest.approx(expected, abs=1e-9)
    assert found.ratios.tolist() == pytest.approx([abs(expected[0]) / 9, abs(expected[1]) / 8], abs=1e-9)


def test_it_agrees_with_the_dense_compression() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(30, 30, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    basis = torch.linalg.qr(torch.randn(30, 8, generator=generator, dtype=torch.float64)).Q
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(descending=True)[:3]
    inside = torch.linalg.eigvalsh(basis.T @ matrix @ basis)
    inside = inside[inside.abs().argsort(descending=True)[:3]]
    for start in (None, vectors[:, order]):
        found = restricted_curvature(DenseOperator(matrix), BasisSubspace(basis), values[order], start=start, tol=1e-9)
        torch.testing.assert_close(found.eigenvalues, inside)
        torch.testing.assert_close(found.ratios, inside.abs() / values[order].abs())
        assert bool((found.ratios <= 1).all()) and bool((found.residuals <= 1e-9).all())


def test_the_whole_space_sees_everything_and_none_sees_nothing() -> None:
    operator = DenseOperator(torch.diag(CURVATURES.flatten()))
    whole = restricted_curvature(operator, BasisSubspace(torch.eye(12, dtype=torch.float64)), FULL, tol=1e-8)
    assert whole.ratios.tolist() == pytest.approx([1, 1])
    empty = {"w": torch.zeros(3, 0, dtype=torch.float64)}, {"w": torch.zeros(4, 0, dtype=torch.float64)}
    none = restricted_curvature(operator, LowRankSubspace(LAYOUT, *empty), FULL)
    assert none.eigenvalues.tolist() == none.ratios.tolist() == [0, 0]


@pytest.mark.parametrize("eigenvalues", [torch.tensor([1.0, 0.0]), torch.tensor(1.0), torch.zeros(0)])
def test_what_cannot_be_compared_is_refused(eigenvalues: Tensor) -> None:
    space = BasisSubspace(torch.eye(12, dtype=torch.float64)[:, :2])
    with pytest.raises(ValueError, match="eigenvalues"):
        restricted_curvature(DenseOperator(torch.eye(12, dtype=torch.float64)), space, eigenvalues)
