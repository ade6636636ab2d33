"""Angles to the space of largest curvature: planted, optimal and undefined ones."""

from __future__ import annotations

import math

import pytest
import torch

from analyses.measures.angles import distances, dominant_columns
from landscape import captured_energy, orthonormal_basis


def values(space: torch.Tensor, best: torch.Tensor) -> dict[str, float]:
    return {row["measure"]: row["value"] for row in distances(space, best)}


def test_no_basis_holds_more_than_the_dominant_columns() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(7, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    weights = torch.tensor([5.0, 2.0, 0.5], dtype=torch.float64)

    def held(basis: torch.Tensor) -> float:
        return sum(float(w) * float((basis.T @ block).square().sum()) for w, block in zip(weights, blocks, strict=True))

    best = dominant_columns(blocks, weights, 2)
    curvature = sum(w * block @ block.T for w, block in zip(weights, blocks, strict=True))
    assert held(best) == pytest.approx(float(torch.linalg.eigvalsh(torch.as_tensor(curvature))[-2:].sum()))
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        other = orthonormal_basis(torch.randn(7, 2, generator=generator, dtype=torch.float64))
        assert held(other) < held(best)


def test_one_eigenvector_and_rank_one_is_its_captured_share() -> None:
    block = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    best = dominant_columns([block], torch.ones(1, dtype=torch.float64), 1)
    assert captured_energy(block, best) == pytest.approx(0.9)


def test_planted_angles_and_their_distances() -> None:
    eye, angle = torch.eye(6, dtype=torch.float64), math.radians(30)
    turned = math.cos(angle) * eye[:, :1] + math.sin(angle) * eye[:, 3:4]
    found = values(eye[:, :2], torch.cat([turned, eye[:, 4:5]], dim=1))
    assert found["principal_angle_smallest"] == pytest.approx(30)
    assert found["principal_angle_largest"] == pytest.approx(90)
    assert found["grassmann_distance"] == pytest.approx(math.hypot(math.pi / 6, math.pi / 2))
    assert found["chordal_distance"] == pytest.approx(math.hypot(0.5, 1))
    assert found["subspace_overlap"] == pytest.approx(0.75 / 2)
    assert found["subspace_overlap_expected"] == pytest.approx(2 / 6)


def test_the_overlap_of_random_spaces_is_what_chance_gives() -> None:
    best = torch.eye(12, dtype=torch.float64)[:, :3]
    generator = torch.Generator().manual_seed(1)
    overlaps = []
    for _ in range(400):
        space = orthonormal_basis(torch.randn(12, 2, generator=generator, dtype=torch.float64))
        overlaps.append(values(space, best)["subspace_overlap"])
    sample = torch.tensor(overlaps)
    error = float(sample.std() / math.sqrt(len(overlaps)))
    assert abs(float(sample.mean()) - values(space, best)["subspace_overlap_expected"]) < 4 * error


def test_a_zero_factor_or_zero_blocks_have_no_angles() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    assert values(eye[:, :0], eye[:, :2]) == {}
    nothing = dominant_columns([torch.zeros(4, 3, dtype=torch.float64)], torch.ones(1, dtype=torch.float64), 2)
    assert nothing.shape == (4, 0) and values(eye[:, :2], nothing) == {}
