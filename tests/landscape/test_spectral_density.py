"""Stochastic Lanczos quadrature against smoothed spectra that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from landscape import DenseOperator, spectral_density
from tests.landscape.cases import hessian_case


def smoothed(values: Tensor, grid: Tensor, width: float) -> Tensor:
    return torch.exp(-0.5 * ((grid[:, None] - values) / width) ** 2).mean(dim=1) / (width * math.sqrt(2 * math.pi))


def test_enough_steps_give_the_smoothed_spectrum_within_its_band() -> None:
    values = torch.tensor(np.concatenate([np.linspace(-1, 1, 150), [5.0, 8.0]]))
    operator = DenseOperator(torch.diag(values))
    result = spectral_density(operator, num_steps=152, num_probes=30, width=0.3)
    exact = smoothed(values, result.grid, 0.3)
    assert float(torch.trapezoid(result.density, result.grid)) == pytest.approx(1, abs=1e-5)
    within = (result.density - exact).abs() <= 3 * result.stderr + 1e-4
    assert within.double().mean() > 0.97
    assert (result.density - exact).abs().max() < 0.1 * exact.max()


@pytest.mark.parametrize("width", [0.3, 0.01, 1e-3])
def test_the_grid_is_as_fine_as_the_width_asks(width: float) -> None:
    operator = DenseOperator(torch.diag(torch.tensor(np.concatenate([np.linspace(-1, 1, 50), [5.0, 8.0]]))))
    result = spectral_density(operator, num_steps=30, width=width, num_points=100)
    assert float(torch.trapezoid(result.density, result.grid)) == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="width: expected at least"):
        spectral_density(operator, num_steps=30, width=1e-9)


def test_the_quadrature_is_exact_for_moments() -> None:
    """m steps integrate polynomials up to degree 2m − 1: vᵀHᵖv for each probe's v, here through the mean of T."""
    case = hessian_case("layer_norm")
    result = spectral_density(case.operator, num_steps=4, num_probes=3, seed=7)
    generator = torch.Generator().manual_seed(7)
    for nodes, weights in zip(result.nodes, result.weights, strict=True):
        vector = torch.randn(len(case.dense), dtype=torch.float64, generator=generator)
        vector = vector / vector.norm()
        for power in range(8):
            exact = vector @ torch.linalg.matrix_power(case.dense, power) @ vector
            assert float((weights * nodes**power).sum()) == pytest.approx(float(exact), rel=1e-8, abs=1e-12)
    assert result.num_matvecs == 12


def test_an_invariant_subspace_ends_a_probe_early() -> None:
    result = spectral_density(DenseOperator(torch.eye(30)), num_steps=20, num_probes=3)
    assert [len(nodes) for nodes in result.nodes] == [1, 1, 1]
    assert result.num_matvecs == 3
    assert float(torch.trapezoid(result.density, result.grid)) == pytest.approx(1, abs=1e-5)
    assert float(result.grid[result.density.argmax()]) == pytest.approx(1, abs=0.01)


def test_a_callback_ends_the_run_with_whole_probes() -> None:
    operator = DenseOperator(torch.diag(torch.linspace(0, 1, 50)))
    result = spectral_density(operator, num_steps=10, num_probes=9, callback=lambda count, _: count >= 25)
    assert [len(nodes) for nodes in result.nodes] == [10, 10] and result.num_matvecs == 25


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_steps": 0}, "num_steps"), ({"num_probes": 1}, "num_probes"), ({"width": -1.0}, "width")],
)
def test_bad_requests_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral_density(DenseOperator(torch.eye(3)), **options)
