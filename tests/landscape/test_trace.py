"""Trace estimators on matrices whose trace is known, and whether their standard errors are honest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape import DenseOperator, EmpiricalFisherOperator, EmpiricalRisk, HessianOperator, estimate_trace
from tests.landscape.cases import hessian_case

METHODS = ["hutchinson", "hutch++", "xtrace"]


def matrix_with(values: np.ndarray) -> Tensor:
    rotation = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=seeded(1)))[0]
    return rotation @ torch.diag(torch.tensor(values)) @ rotation.T


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SPECTRA = {
    "decaying": 10.0 * 0.8 ** np.arange(120),
    "flat": np.linspace(1, 2, 120),
    "both signs": np.concatenate([10.0 * 0.8 ** np.arange(60), -0.2 * np.ones(60)]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_is_unbiased_with_an_honest_standard_error(method: str, spectrum: str) -> None:
    """Over 150 seeds the mean error vanishes and the scaled errors have the spread of a t variable."""
    values = SPECTRA[spectrum]
    operator = DenseOperator(matrix_with(values))
    results = [estimate_trace(operator, method=method, tol=1e-9, max_matvecs=30, seed=seed) for seed in range(150)]
    errors = np.array([result.trace - values.sum() for result in results])
    stderrs = np.array([result.stderr for result in results])
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(len(errors)) + 1e-9 * values.sum()
    ratio = errors.std() / np.sqrt((stderrs**2).mean())
    assert 0.6 < ratio < 1.6, ratio
    assert all(result.num_matvecs == 30 and not result.converged for result in results)


STOPPING = {
    "flat": np.linspace(1, 2, 100),
    "decaying": 0.9 ** np.arange(100),
    "power law": 1 / np.arange(1.0, 101),
    "rank twelve": np.concatenate([np.linspace(1, 5, 12), np.zeros(88)]),
    "cluster": np.concatenate([5 * np.ones(10), 0.01 * np.ones(90)]),
    "outlier": np.concatenate([[100.0], np.ones(99)]),
    "indefinite": np.concatenate([[5.0, 4, -3, -2], np.linspace(-0.1, 0.2, 96)]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", STOPPING)
def test_the_standard_error_at_which_a_run_stops_is_honest(method: str, spectrum: str) -> None:
    """A run that stops when its error seems small must not have stopped because it seemed so by chance."""
    values = STOPPING[spectrum]
    operator = DenseOperator(matrix_with(values))
    results = [estimate_trace(operator, method=method, tol=0.03, max_matvecs=90, seed=seed) for seed in range(60)]
    scaled = [abs(r.trace - values.sum()) / (r.stderr + 1e-12 * abs(values).sum()) for r in results]
    assert np.mean(np.array(scaled) > 3) <= 0.05
    assert np.mean(np.array(scaled) > 2) <= 0.15  # 5 % of normal variables, 8 % of t variables with 9 degrees
    if method != "hutchinson" and spectrum != "indefinite":
        assert all(result.converged for result in results)


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("rank", [1, 5, 12, 20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_low_rank_is_traced_exactly(method: str, rank: int, dtype: torch.dtype) -> None:
    """Once the sketch holds the range, more of it is rounding, and no direction."""
    values = np.concatenate([np.linspace(1, 5, rank), np.zeros(200 - rank)])
    operator = DenseOperator(matrix_with(values).to(dtype))
    for seed in range(5):
        result = estimate_trace(operator, method=method, tol=1e-9 if dtype == torch.float64 else 1e-5, seed=seed)
        assert result.trace == pytest.approx(values.sum(), rel=1e-12 if dtype == torch.float64 else 1e-6)
        assert result.converged and result.num_matvecs <= 150


@pytest.mark.parametrize("method", METHODS)
def test_the_fisher_of_a_few_examples(method: str) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 4)).double()
    risk = EmpiricalRisk(model, [(torch.randn(12, 10).double(), torch.randint(0, 4, (12,)))])
    operator = EmpiricalFisherOperator(risk)
    exact = float(operator.to_dense().trace())
    result = estimate_trace(operator, method=method, tol=1e-9, max_matvecs=100)
    if method == "hutchinson":
        assert not result.converged and abs(result.trace - exact) < 4 * result.stderr
    else:
        assert result.converged and result.trace == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_stops_at_the_error_asked_for(method: str) -> None:
    values = SPECTRA["flat"]
    result = estimate_trace(DenseOperator(matrix_with(values)), method=method, tol=0.02, max_matvecs=120)
    assert result.converged
    assert 0 < result.stderr <= 0.02 * result.trace
    assert abs(result.trace - values.sum()) < 4 * result.stderr + 1e-9


def test_sketches_pay_off_on_decaying_spectra() -> None:
    operator = DenseOperator(matrix_with(SPECTRA["decaying"]))
    reached = {method: estimate_trace(operator, method=method, tol=1e-12, max_matvecs=60).stderr for method in METHODS}
    assert reached["hutch++"] < reached["hutchinson"] / 10
    assert reached["xtrace"] < reached["hutch++"]


def test_small_operators_are_traced_exactly() -> None:
    matrix = matrix_with(np.arange(20.0))
    result = estimate_trace(DenseOperator(matrix))
    assert (result.stderr, result.num_matvecs, result.converged) == (0.0, 20, True)
    assert result.trace == pytest.approx(190.0)


def test_the_exact_trace_takes_over_where_sampling_would_cost_more() -> None:
    operator = DenseOperator(matrix_with(SPECTRA["both signs"]))
    result = estimate_trace(operator, method="hutchinson", tol=1e-6, max_matvecs=300)
    assert (result.stderr, result.num_matvecs, result.converged) == (0.0, 240, True)
    assert result.trace == pytest.approx(SPECTRA["both signs"].sum())


def test_a_hessian() -> None:
    case = hessian_case("layer_norm")
    assert isinstance(case.operator, HessianOperator)
    result = estimate_trace(case.operator, method="hutchinson", tol=0.3, max_matvecs=50)
    assert abs(result.trace - float(case.dense.trace())) <= 4 * result.stderr


def test_a_callback_sees_the_error_and_can_stop() -> None:
    seen: list[tuple[int, float]] = []

    def stop(num_matvecs: int, error: float) -> bool:
        seen.append((num_matvecs, error))
        return len(seen) == 2

    result = estimate_trace(DenseOperator(matrix_with(SPECTRA["flat"])), method="hutchinson", tol=1e-9, callback=stop)
    assert [count for count, _ in seen] == [10, 20] and result.num_matvecs == 20
    assert seen[1][1] == pytest.approx(result.stderr / result.trace)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"method": "guess"}, "method"), ({"tol": 0.0}, "tol"), ({"max_matvecs": 5}, "max_matvecs")],
)
def test_bad_requests_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_trace(DenseOperator(torch.eye(40)), **options)
