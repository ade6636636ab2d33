"""Alignment where the answer is known, and the null models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from landscape import (
    Layout,
    LowRankSubspace,
    alignment,
    block_spectra,
    chordal_distance,
    grassmann_distance,
    orthonormal_basis,
    principal_angles,
    top_singular_bases,
    weighted_capture,
)

SHAPES = {"a": (6, 5), "b": (4, 7)}
LAYOUT = Layout(tuple(SHAPES), tuple(torch.Size(shape) for shape in SHAPES.values()))
KINDS = ("column", "row", "core", "tangent")


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factors(seed: int, rank: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    """Per layer A (r, in) and B (out, r)."""
    return {
        name: (random(rank, into, seed=seed + i), random(out, rank, seed=seed + 10 + i))
        for i, (name, (out, into)) in enumerate(SHAPES.items())
    }


def subspace(pairs: dict[str, tuple[Tensor, Tensor]], kind: str) -> LowRankSubspace:
    columns = {name: orthonormal_basis(b) for name, (_, b) in pairs.items()}
    rows = {name: orthonormal_basis(a.T) for name, (a, _) in pairs.items()}
    return LowRankSubspace(LAYOUT, columns, rows, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_inside_orthogonal_and_half_inside(kind: str) -> None:
    space = subspace(factors(0), kind)
    inside = space.project(random(58, seed=3))
    rest = random(58, seed=4)
    outside = rest - space.project(rest)
    assert alignment(inside, space).pooled.captured == pytest.approx(1)
    assert alignment(outside, space).pooled.captured == pytest.approx(0, abs=1e-20)
    half = inside / inside.norm() + outside / outside.norm()
    assert alignment(half, space).pooled.captured == pytest.approx(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_null_has_the_exact_expectation_and_ranks_the_direction(kind: str) -> None:
    direction = random(58, seed=5)
    shares, fixed = [], None
    for seed in range(1500):
        result = alignment(direction, subspace(factors(100 + 37 * seed), kind), num_samples=0)
        shares.append([result.layers["a"].captured, result.layers["b"].captured, result.pooled.captured])
        fixed = result
    found = np.array(shares)
    errors = found.std(axis=0, ddof=1) / math.sqrt(len(found))
    expected = [fixed.layers["a"].expected, fixed.layers["b"].expected, fixed.pooled.expected]
    assert np.all(np.abs(found.mean(axis=0) - expected) < 4 * errors)
    c, r = 2 / 6, 2 / 5
    assert fixed.layers["a"].expected == pytest.approx(
        {"column": c, "row": r, "core": c * r, "tangent": 1 - (1 - c) * (1 - r)}[kind]
    )
    sampled = alignment(direction, subspace(factors(1), kind), num_samples=4000)
    assert sampled.pooled.deviation == pytest.approx(found[:, 2].std(ddof=1), rel=0.1)
    distance = (sampled.pooled.captured - sampled.pooled.expected) / sampled.pooled.deviation
    assert sampled.pooled.z_score == pytest.approx(distance)


@pytest.mark.parametrize("kind", KINDS)
def test_optimum_is_reached_and_never_passed(kind: str) -> None:
    direction = random(58, seed=6)
    blocks, columns, rows = LAYOUT.split(direction), {}, {}
    for name, block in blocks.items():
        left, _, right = torch.linalg.svd(block, full_matrices=False)
        columns[name] = left[:, :2]
        rows[name] = right[2:4].T if kind == "tangent" else right[:2].T
    best = alignment(direction, LowRankSubspace(LAYOUT, columns, rows, kind), num_samples=2000)
    assert best.pooled.captured == pytest.approx(best.pooled.optimum)
    assert best.pooled.p_value == pytest.approx(1 / 2001)
    for seed in range(50):
        other = alignment(direction, subspace(factors(500 + 41 * seed), kind), num_samples=0)
        assert other.pooled.captured <= best.pooled.optimum + 1e-12


@given(
    st.tuples(st.integers(2, 7), st.integers(2, 7)),
    st.tuples(st.integers(0, 7), st.integers(0, 7)),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_shares_of_every_shape_and_rank(
    shape: tuple[int, int], ranks: tuple[int, int], dtype: torch.dtype, seed: int
) -> None:
    """0 ≤ core ≤ column, row ≤ tangent ≤ 1, tangent = column + row − core, and nothing exceeds its optimum."""
    (out, into), (c, r) = shape, (min(ranks[0], shape[0]), min(ranks[1], shape[1]))
    layout = Layout(("w",), (torch.Size(shape),))
    direction = random(out * into, seed=seed).to(dtype)
    bases = (
        {"w": torch.linalg.qr(random(size, size, seed=seed + i).to(dtype)).Q[:, :rank]}
        for i, (size, rank) in enumerate(((out, c), (into, r)), 1)
    )
    columns, rows = bases
    spectra = block_spectra(layout, direction)
    found = {
        kind: alignment(
            direction, LowRankSubspace(layout, columns, rows, kind), num_samples=20, seed=seed, spectra=spectra
        ).pooled
        for kind in KINDS
    }
    share = {kind: one.captured for kind, one in found.items()}
    assert 0 <= share["core"] <= min(share["column"], share["row"]) + 1e-12
    assert max(share["column"], share["row"]) - 1e-12 <= share["tangent"] <= 1 + 1e-12
    assert share["tangent"] == pytest.approx(share["column"] + share["row"] - share["core"], abs=1e-12)
    for kind, one in found.items():
        assert one.captured <= one.optimum + 1e-12
        assert one.expected <= one.optimum + 1e-12
        assert 1 / 21 <= one.p_value <= 1
        if LowRankSubspace(layout, columns, rows, kind).dimension in (0, out * into):
            assert math.isnan(one.z_score) and one.p_value == 1
        else:
            assert math.isfinite(one.z_score)


def test_tangent_optimum_withstands_a_search() -> None:
    """Gradient ascent over both bases of one block ends at the sum of the c + r largest squared singular values."""
    block = random(6, 5, seed=7)
    squares = torch.linalg.svdvals(block).square()
    best = 0.0
    for seed in range(5):
        b, a = random(6, 1, seed=seed).requires_grad_(), random(5, 2, seed=seed + 50).requires_grad_()
        optimizer = torch.optim.Adam([b, a], lr=0.05)
        for _ in range(400):
            p, q = (torch.linalg.qr(x).Q for x in (b, a))
            rest = block - p @ (p.T @ block)
            loss = (rest - rest @ q @ q.T).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        best = max(best, 1 - loss.item() / float(squares.sum()))
    assert best == pytest.approx(float(squares[:3].sum() / squares.sum()), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_and_rotation_of_the_factors_do_not_matter(kind: str) -> None:
    direction, pairs = random(58, seed=8), factors(9)
    turn = orthonormal_basis(random(2, 2, seed=10))
    changed = {name: (turn.T @ a / 30, 30 * b @ turn) for name, (a, b) in pairs.items()}
    plain, other = (alignment(direction, subspace(p, kind)) for p in (pairs, changed))
    assert other.pooled.captured == pytest.approx(plain.pooled.captured, rel=1e-10)
    assert other.pooled.p_value == plain.pooled.p_value


def test_factors_of_lower_rank_and_of_none() -> None:
    direction, pairs = random(58, seed=11), factors(12)
    a, b = pairs["a"]
    lone = pairs | {"a": (a, b[:, :1] @ torch.ones(1, 2, dtype=b.dtype)), "b": (pairs["b"][0], 0 * pairs["b"][1])}
    result = alignment(direction, subspace(lone, "column"))
    assert result.layers["a"].expected == pytest.approx(1 / 6)
    none = result.layers["b"]
    assert (none.captured, none.expected, none.optimum, none.p_value) == (0, 0, 0, 1)
    assert math.isnan(none.of_optimum) and math.isnan(none.z_score)


def test_a_planted_alignment_is_found_and_chance_is_not() -> None:
    space = subspace(factors(13), "column")
    planted = space.project(random(58, seed=14)) + 0.3 * random(58, seed=15)
    assert alignment(planted, space, num_samples=500).pooled.p_value < 0.01
    rejected = sum(
        alignment(random(58, seed=1000 + i), space, num_samples=199, seed=i).pooled.p_value <= 0.05 for i in range(200)
    )
    low, high = stats.binom.interval(0.999, 200, 0.05)
    assert low <= rejected <= high


def test_singular_bases_hold_the_most() -> None:
    direction = random(58, seed=16)
    columns, rows = top_singular_bases(LAYOUT, direction, 2)
    for kind in ("column", "row", "core"):
        share = alignment(direction, LowRankSubspace(LAYOUT, columns, rows, kind)).pooled
        assert share.captured == pytest.approx(share.optimum)


def test_singular_bases_leave_out_what_is_zero() -> None:
    rank_one = torch.cat([torch.outer(random(6, seed=30), random(5, seed=31)).flatten(), torch.zeros(28)])
    columns, rows = top_singular_bases(LAYOUT, rank_one, 3)
    assert {name: (columns[name].shape[1], rows[name].shape[1]) for name in SHAPES} == {"a": (1, 1), "b": (0, 0)}
    assert alignment(rank_one, LowRankSubspace(LAYOUT, columns, rows, "core")).pooled.captured == pytest.approx(1)


def test_curvature_weights_by_absolute_eigenvalue() -> None:
    space = subspace(factors(17), "tangent")
    inside, rest = space.project(random(58, seed=18)), random(58, seed=19)
    outside = rest - space.project(rest)
    vectors = torch.stack([inside / inside.norm(), outside / outside.norm()], dim=1)
    assert weighted_capture(torch.tensor([-3.0, 1.0]), vectors, space) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="eigenvectors"):
        weighted_capture(torch.tensor([1.0]), vectors, space)
    with pytest.raises(ValueError, match="not zero"):
        weighted_capture(torch.zeros(2), vectors, space)


def test_distances_come_from_the_angles() -> None:
    one, other = (orthonormal_basis(random(9, 3, seed=s)) for s in (20, 21))
    angles = principal_angles(one, other)
    assert grassmann_distance(one, other) == pytest.approx(float(angles.norm()))
    projectors = one @ one.T - other @ other.T
    assert chordal_distance(one, other) == pytest.approx(float(projectors.norm()) / math.sqrt(2))


def test_bad_directions_are_refused() -> None:
    space = subspace(factors(22), "column")
    with pytest.raises(ValueError, match=r"direction: expected a tensor of shape \(58,\)"):
        alignment(torch.ones(57), space)
    with pytest.raises(ValueError, match="not zero"):
        alignment(torch.zeros(58), space)
    for count in (-1, 1):
        with pytest.raises(ValueError, match="num_samples"):
            alignment(torch.ones(58), space, num_samples=count)
    with pytest.raises(ValueError, match="r: expected"):
        top_singular_bases(LAYOUT, torch.ones(58), 0)
    only_a = torch.cat([torch.ones(30), torch.zeros(28)])
    result = alignment(only_a, space)
    assert math.isnan(result.layers["b"].captured) and 0 < result.pooled.captured <= 1
