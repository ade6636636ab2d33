"""Subspaces against closed forms and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from landscape import (
    Layout,
    LowRankSubspace,
    captured_energy,
    orthonormal_basis,
    principal_angles,
    select_parameters,
    subspace_overlap,
)


def random_basis(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))[0]


@pytest.mark.parametrize(("k_a", "k_b"), [(3, 3), (2, 4), (4, 1)])
def test_angles_agree_with_scipy(k_a: int, k_b: int) -> None:
    a, b = random_basis(10, k_a, 1), random_basis(10, k_b, 2)
    np.testing.assert_allclose(principal_angles(a, b), sorted(subspace_angles(a.numpy(), b.numpy())), atol=1e-12)
    overlap = np.square(np.cos(subspace_angles(a.numpy(), b.numpy()))).sum() / min(k_a, k_b)
    assert subspace_overlap(a, b) == pytest.approx(overlap)


@pytest.mark.parametrize("angle", [0.0, 1e-10, 1e-4, 0.7, math.pi / 2])
def test_planted_angles(angle: float) -> None:
    eye = torch.eye(5, dtype=torch.float64)
    tilted = torch.stack([eye[0], math.cos(angle) * eye[1] + math.sin(angle) * eye[2]], dim=1)
    torch.testing.assert_close(
        principal_angles(eye[:, :2], tilted), torch.tensor([0.0, angle], dtype=torch.float64), atol=1e-14, rtol=1e-9
    )


@pytest.mark.parametrize(("inside", "share"), [(1.0, 1.0), (0.0, 0.0), (math.sqrt(0.5), 0.5)])
def test_captured_energy_of_planted_blocks(inside: float, share: float) -> None:
    basis = random_basis(8, 8)
    block = inside * basis[:, :1] + math.sqrt(1 - inside**2) * basis[:, 5:6]
    block = block @ torch.randn(1, 6, dtype=torch.float64)
    assert captured_energy(block, basis[:, :2]) == pytest.approx(share, abs=1e-12)


def test_random_subspaces_capture_r_over_out() -> None:
    block = torch.randn(20, 7, dtype=torch.float64)
    shares = [captured_energy(block, random_basis(20, 3, seed)) for seed in range(400)]
    assert np.mean(shares) == pytest.approx(3 / 20, abs=4 * np.std(shares) / 20)


def test_dependent_and_zero_columns_span_what_they_span() -> None:
    column = torch.randn(6, 1, dtype=torch.float64)
    basis = orthonormal_basis(torch.cat([column, 2 * column, 0 * column], dim=1))
    assert basis.shape == (6, 1)
    assert captured_energy(column, basis) == pytest.approx(1.0)
    assert orthonormal_basis(torch.zeros(6, 2)).shape == (6, 0)
    assert captured_energy(column, orthonormal_basis(torch.zeros(6, 2))) == 0.0


@pytest.mark.parametrize("kind", ["column", "row", "core", "tangent"])
def test_low_rank_subspaces_are_orthogonal_projections(kind: str) -> None:
    layout = Layout(("a", "b"), (torch.Size([4, 3]), torch.Size([2, 5])))
    space = LowRankSubspace(
        layout,
        {"a": random_basis(4, 2), "b": random_basis(2, 1)},
        {"a": random_basis(3, 1), "b": random_basis(5, 2)},
        kind,  # type: ignore[arg-type]
    )
    matrix = torch.stack([space.project(column) for column in torch.eye(layout.size, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix @ matrix, matrix)
    assert torch.linalg.matrix_rank(matrix) == space.dimension


def test_the_tangent_space_holds_every_first_order_change_of_the_factors() -> None:
    a, b = torch.randn(2, 5, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    layout = Layout(("w",), (torch.Size([6, 5]),))
    space = LowRankSubspace(layout, {"w": orthonormal_basis(b)}, {"w": orthonormal_basis(a.T)})
    change = (torch.randn_like(b) @ a + b @ torch.randn_like(a)).flatten()
    torch.testing.assert_close(space.project(change), change)
    assert space.dimension == 2 * (6 + 5 - 2)


def test_bad_bases_are_refused() -> None:
    with pytest.raises(ValueError, match="orthonormal"):
        principal_angles(2 * torch.eye(3)[:, :1], torch.eye(3)[:, :1])
    with pytest.raises(ValueError, match="ambient"):
        subspace_overlap(torch.eye(3)[:, :1], torch.eye(4)[:, :1])
    with pytest.raises(ValueError, match="rows"):
        captured_energy(torch.ones(3, 2), torch.eye(4)[:, :1])


@pytest.mark.parametrize(
    ("columns", "rows", "kind", "message"),
    [
        (random_basis(3, 1), random_basis(3, 1), "column", r"columns: expected shape \(4, r\) for 'w', got \(3, 1\)"),
        (random_basis(4, 1), random_basis(4, 1), "column", r"rows: expected shape \(3, r\)"),
        (2 * random_basis(4, 1), random_basis(3, 1), "column", "orthonormal"),
        (random_basis(4, 1), random_basis(3, 1), "col", "kind: expected one of column, row, core, tangent"),
    ],
)
def test_bad_low_rank_subspaces_are_refused(columns: Tensor, rows: Tensor, kind: str, message: str) -> None:
    layout = Layout(("w",), (torch.Size([4, 3]),))
    with pytest.raises(ValueError, match=message):
        LowRankSubspace(layout, {"w": columns}, {"w": rows}, kind)  # type: ignore[arg-type]


def test_low_rank_subspaces_need_matrices_and_all_bases() -> None:
    with pytest.raises(ValueError, match="matrices only"):
        LowRankSubspace(
            Layout(("bias",), (torch.Size([4]),)), {"bias": random_basis(4, 1)}, {"bias": random_basis(4, 1)}
        )
    with pytest.raises(ValueError, match="rows: expected a basis for 'w', got none"):
        LowRankSubspace(Layout(("w",), (torch.Size([4, 3]),)), {"w": random_basis(4, 1)}, {})


def test_layout_and_selection() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    model[1].weight = torch.nn.Parameter(model[0].weight.detach().T.clone())
    tied = torch.nn.ModuleList([model[0], model[0]])
    assert list(select_parameters(tied)) == ["0.weight", "0.bias"]
    assert list(select_parameters(model, r"weight$")) == ["0.weight", "1.weight"]
    assert list(select_parameters(model, ["1.bias"])) == ["1.bias"]
    assert list(select_parameters(model, lambda name: name.startswith("0"))) == ["0.weight", "0.bias"]
    chosen = select_parameters(model)
    layout = Layout(tuple(chosen), tuple(p.shape for p in chosen.values()))
    vector = layout.join(chosen)
    assert all(torch.equal(part, chosen[name]) for name, part in layout.split(vector).items())
    with pytest.raises(ValueError, match="expected shape"):
        layout.split(torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rounding_adds_no_rank(dtype: torch.dtype) -> None:
    """A matrix of rank 3 that was rounded entry by entry has full rank, and that is no information."""
    torch.manual_seed(0)
    factors = torch.randn(3, 8, dtype=torch.float64)
    exact = torch.randn(40, 3, dtype=torch.float64)
    rounded = (exact @ factors).to(dtype)
    basis = orthonormal_basis(rounded)
    assert basis.shape == (40, 3)
    assert float(principal_angles(basis.double(), orthonormal_basis(exact)).max()) < 10 * torch.finfo(dtype).eps + 1e-7
    again = orthonormal_basis(rounded.double(), tol=torch.finfo(dtype).eps)
    assert again.shape == (40, 3)
