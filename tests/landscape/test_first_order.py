"""First-order optima and LoRA-SAM's perturbation, against searches and literal formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from landscape import (
    Layout,
    LowRankSubspace,
    alignment,
    factor_perturbation,
    first_order_optimum,
    top_singular_bases,
    trust_region_maximum,
)
from landscape.operators import DenseOperator

SHAPES = {"a": (6, 5), "b": (4, 7)}


@dataclass(frozen=True)
class Pair:
    A: Tensor
    B: Tensor
    scaling: float


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(seed: int = 0) -> dict[str, Tensor]:
    return {name: random(*shape, seed=seed + i) for i, (name, shape) in enumerate(SHAPES.items())}


def pairs(seed: int = 50) -> dict[str, Pair]:
    """The layers' scalings differ, as a common one would cancel."""
    return {
        name: Pair(random(2, into, seed=seed + i), random(out, 2, seed=seed + 10 + i), 1.5 + i)
        for i, (name, (out, into)) in enumerate(SHAPES.items())
    }


def joined(blocks: dict[str, Tensor]) -> Tensor:
    return torch.cat([block.flatten() for block in blocks.values()])


def test_a_search_over_factors_finds_the_frobenius_optimum_and_no_more() -> None:
    g, rho = gradients(), 0.3
    best = -math.inf
    for seed in range(3):
        start = pairs(seed=100 * seed).values()
        free = [factor.requires_grad_() for pair in start for factor in (pair.B, pair.A)]
        optimizer = torch.optim.Adam(free, lr=0.05)
        for _ in range(300):
            epsilon = torch.cat([(b @ a).flatten() for b, a in zip(free[::2], free[1::2], strict=True)])
            rise = rho * (joined(g) @ epsilon) / epsilon.norm()
            optimizer.zero_grad()
            (-rise).backward()
            optimizer.step()
        best = max(best, rise.item())
    optimum = first_order_optimum(g, 2, rho)
    assert optimum.frobenius * (1 - 1e-4) < best <= optimum.frobenius + 1e-12


def test_the_ky_fan_sum_is_reached_on_the_spectral_ball() -> None:
    g, rho = gradients(), 0.3
    rise = 0.0
    for block in g.values():
        left, _, right = torch.linalg.svd(block, full_matrices=False)
        epsilon = rho * left[:, :2] @ right[:2]
        assert torch.linalg.matrix_norm(epsilon, 2) == pytest.approx(rho)
        rise += float((block * epsilon).sum())
    assert first_order_optimum(g, 2, rho).ky_fan == pytest.approx(rise)


@given(st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_optima_are_ordered_and_grow_with_the_rank(r: int, seed: int) -> None:
    g = gradients(seed)
    here, more = first_order_optimum(g, r, 1.0), first_order_optimum(g, r + 1, 1.0)
    count = sum(min(r, *shape) for shape in SHAPES.values())
    assert here.frobenius <= here.ky_fan <= math.sqrt(count) * here.frobenius * (1 + 1e-12)
    assert here.frobenius <= more.frobenius <= float(joined(g).norm()) * (1 + 1e-12)


def test_a_quadratic_whose_best_low_rank_perturbation_is_known() -> None:
    """With Hessian hI all directions curve alike: the worst case of rank r is G's truncation, scaled to the radius."""
    g, rho, h = gradients(), 0.4, 0.7
    layout = Layout(tuple(g), tuple(block.shape for block in g.values()))
    columns, rows = top_singular_bases(layout, joined(g), 2)
    space = LowRankSubspace(layout, columns, rows, "core")
    truncated = space.project(joined(g))
    optimum = first_order_optimum(g, 2, rho)
    worst = rho * truncated / truncated.norm()
    assert float(joined(g) @ worst) == pytest.approx(optimum.frobenius)
    model = trust_region_maximum(DenseOperator(h * torch.eye(58, dtype=torch.float64)), truncated, rho)
    torch.testing.assert_close(model.epsilon, worst, rtol=1e-6, atol=1e-8)
    assert model.predicted_rise == pytest.approx(optimum.frobenius + h * rho**2 / 2)
    share = alignment(joined(g), space, num_samples=0).pooled
    assert share.of_optimum == pytest.approx(1)
    assert rho * math.sqrt(share.captured) * float(joined(g).norm()) == pytest.approx(optimum.frobenius)


def test_the_perturbation_is_the_literal_one() -> None:
    g, factors, rho = gradients(), pairs(), 0.2
    slopes = {n: (p.scaling * p.B.T @ g[n], p.scaling * g[n] @ p.A.T) for n, p in factors.items()}
    norm = torch.cat([part.flatten() for both in slopes.values() for part in both]).norm()
    found = factor_perturbation(g, factors, rho)
    for name, p in factors.items():
        e_a, e_b = (rho / norm * part for part in slopes[name])
        exact = p.scaling * (p.B + e_b) @ (p.A + e_a) - p.scaling * p.B @ p.A
        c = rho * p.scaling**2 / norm
        torch.testing.assert_close(found.exact[name], exact)
        torch.testing.assert_close(found.formula[name], c * (p.B @ p.B.T @ g[name] + g[name] @ p.A.T @ p.A))
    exact, formula = joined(dict(found.exact)), joined(dict(found.formula))
    assert found.relative_error == pytest.approx(float((exact - formula).norm() / exact.norm()))
    layout = Layout(tuple(g), tuple(block.shape for block in g.values()))
    columns = {n: torch.linalg.qr(p.B).Q for n, p in factors.items()}
    rows = {n: torch.linalg.qr(p.A.T).Q for n, p in factors.items()}
    inside = alignment(exact, LowRankSubspace(layout, columns, rows, "tangent"), num_samples=0).pooled
    assert found.tangent_share == pytest.approx(inside.captured)


def test_the_error_is_of_first_order_in_rho() -> None:
    large, small = (factor_perturbation(gradients(), pairs(), rho) for rho in (1e-2, 1e-4))
    assert small.relative_error == pytest.approx(large.relative_error / 100, rel=0.05)
    assert 1 - small.tangent_share <= small.relative_error**2 + 1e-12


def test_at_the_start_the_formula_is_exact() -> None:
    """B = 0: only B moves, along GA', and there is no cross term."""
    start = {name: Pair(p.A, torch.zeros_like(p.B), p.scaling) for name, p in pairs().items()}
    found = factor_perturbation(gradients(), start, 0.1)
    assert (found.relative_error, found.tangent_share) == pytest.approx((0, 1))


@pytest.mark.parametrize(("factor", "rho"), [(0.0, 0.1), (1.0, 0.0)])
def test_no_gradient_or_no_radius_is_no_perturbation(factor: float, rho: float) -> None:
    found = factor_perturbation({name: factor * g for name, g in gradients().items()}, pairs(), rho)
    assert not joined(dict(found.exact)).any() and not joined(dict(found.formula)).any()
    assert math.isnan(found.relative_error) and math.isnan(found.tangent_share)


def test_bad_arguments_are_refused() -> None:
    g = gradients()
    with pytest.raises(ValueError, match="r: expected"):
        first_order_optimum(g, 0, 1.0)
    with pytest.raises(ValueError, match="rho: expected"):
        first_order_optimum(g, 1, math.nan)
    with pytest.raises(ValueError, match="at least one layer"):
        first_order_optimum({}, 1, 1.0)
    with pytest.raises(ValueError, match="expected matrices"):
        first_order_optimum({"bias": torch.ones(3)}, 1, 1.0)
    with pytest.raises(ValueError, match="layers"):
        factor_perturbation({"a": g["a"]}, pairs(), 0.1)
    with pytest.raises(ValueError, match=r"expected A \(r, 5\) and B \(6, r\)"):
        factor_perturbation(g, {"a": pairs()["b"], "b": pairs()["b"]}, 0.1)
    with pytest.raises(ValueError, match="rho: expected"):
        factor_perturbation(g, pairs(), -0.1)
