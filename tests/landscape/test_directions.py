"""Directions: norms of the filters, planes of known trajectories, parts of a direction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from landscape import (
    EmpiricalRisk,
    Layout,
    LowRankSubspace,
    filter_normalize,
    random_direction,
    split_direction,
    trajectory_plane,
)
from tests.landscape.conftest import tiny_vit


@pytest.fixture
def risk(digit_batches: list[dict[str, Tensor]]) -> EmpiricalRisk:
    return EmpiricalRisk(tiny_vit(), digit_batches)


def test_every_filter_has_the_norm_of_the_weights(risk: EmpiricalRisk) -> None:
    weights = risk.layout.split(risk.theta)
    for name, part in risk.layout.split(random_direction(risk, seed=0)).items():
        if part.dim() < 2:
            assert torch.count_nonzero(part) == 0, name
        else:
            norms = torch.stack([row.norm() for row in part])
            torch.testing.assert_close(norms, torch.stack([row.norm() for row in weights[name]]), msg=name)


def test_a_layer_keeps_its_shape_and_takes_the_norm_of_the_weights(risk: EmpiricalRisk) -> None:
    weights = risk.layout.split(risk.theta)
    noise = risk.layout.split(random_direction(risk, seed=0, normalize="none"))
    for name, part in risk.layout.split(random_direction(risk, seed=0, normalize="layer")).items():
        if part.dim() >= 2:
            torch.testing.assert_close(part / part.norm(), noise[name] / noise[name].norm())
            torch.testing.assert_close(part.norm(), weights[name].norm())


def test_without_normalisation_the_entries_are_standard_normal(risk: EmpiricalRisk) -> None:
    noise = random_direction(risk, seed=0, normalize="none")
    assert abs(float(noise.mean())) < 4 / math.sqrt(len(noise))
    assert float(noise.var()) == pytest.approx(1, abs=0.2)


def test_the_seed_decides_and_the_global_generator_does_not(risk: EmpiricalRisk) -> None:
    first = random_direction(risk, seed=1)
    torch.randn(3)
    state = torch.get_rng_state()
    assert torch.equal(first, random_direction(risk, seed=1))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, random_direction(risk, seed=2))


def test_empty_filters_give_zeros() -> None:
    layout = Layout(("w",), (torch.Size([2, 2]),))
    scaled = filter_normalize(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0]), layout)
    assert torch.equal(scaled, torch.zeros(4))


def test_a_planar_trajectory_is_explained_entirely() -> None:
    generator = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(50, 2, generator=generator, dtype=torch.float64))
    angles = torch.linspace(0, 4, 9, dtype=torch.float64)
    planar = torch.stack([3 * angles.cos(), angles.sin()], dim=1)
    points = 7 + planar @ axes.T
    plane = trajectory_plane(points)
    assert float(plane.explained_variance.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(plane.basis.T @ plane.basis, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(points[-1] + plane.coordinates @ plane.basis.T, points)
    centred = planar - planar.mean(dim=0)
    variances = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    torch.testing.assert_close(plane.explained_variance, variances / variances.sum())


def test_components_are_those_of_a_dense_decomposition() -> None:
    points = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).cumsum(dim=0)
    plane = trajectory_plane(points, k=3)
    centred = (points - points.mean(dim=0)).double()
    _, singular, right = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close((right[:3] @ plane.basis.double()).abs(), torch.eye(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(plane.explained_variance, singular[:3] ** 2 / singular.square().sum())
    assert plane.basis.dtype == torch.float32 and torch.equal(plane.coordinates[-1], torch.zeros(3).double())


def test_trajectories_that_vary_too_little() -> None:
    line = torch.outer(torch.arange(4.0), torch.tensor([1.0, 2.0, 2.0]))
    with pytest.raises(ValueError, match="variation in 2 directions, got 1"):
        trajectory_plane(line)
    assert trajectory_plane(line, k=1).coordinates[:, 0].tolist() == pytest.approx([9.0, 6.0, 3.0, 0.0])
    with pytest.raises(ValueError, match="got 0"):
        trajectory_plane(torch.ones(3, 5), k=1)


def test_the_two_parts_are_orthogonal_units_in_the_plane_of_the_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    layout = Layout(("w",), (torch.Size([6, 5]),))
    columns, _ = torch.linalg.qr(torch.randn(6, 2, generator=generator))
    rows, _ = torch.linalg.qr(torch.randn(5, 2, generator=generator))
    space = LowRankSubspace(layout, {"w": columns}, {"w": rows})
    direction = torch.randn(30, generator=generator)
    inside, outside = split_direction(direction, space)
    assert float(inside.norm()) == pytest.approx(1) and float(outside.norm()) == pytest.approx(1)
    assert float(inside @ outside) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(space.project(inside), inside)
    torch.testing.assert_close((direction @ inside) * inside + (direction @ outside) * outside, direction)


def test_a_direction_without_one_of_the_parts() -> None:
    basis = torch.eye(3)[:, :1]
    with pytest.raises(ValueError, match="a part outside the subspace"):
        split_direction(torch.tensor([2.0, 0.0, 0.0]), basis)
    with pytest.raises(ValueError, match="a part inside the subspace"):
        split_direction(torch.tensor([0.0, 1.0, 0.0]), basis)


def test_bad_input(risk: EmpiricalRisk) -> None:
    with pytest.raises(ValueError, match="normalize: expected 'filter'"):
        random_direction(risk, seed=0, normalize="weights")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unit: expected"):
        filter_normalize(risk.theta, risk.theta, risk.layout, unit="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least two dimensions"):
        random_direction(EmpiricalRisk(nn.LayerNorm(2), [(torch.eye(2), torch.tensor([0, 1]))]), seed=0)
    with pytest.raises(ValueError, match=r"points: expected finite weights of shape \(T, n\)"):
        trajectory_plane(torch.ones(3))
    with pytest.raises(ValueError, match="k: expected a count of at least 1"):
        trajectory_plane(torch.ones(3, 2), k=0)
