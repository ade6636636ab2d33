"""Lanczos and power iteration against numpy on matrices with awkward spectra."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from landscape import (
    DenseOperator,
    EigenResult,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    lanczos,
    power_iteration,
)


def matrix_with(spectrum: list[float], size: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    values = torch.zeros(size, dtype=torch.float64)
    values[: len(spectrum)] = torch.tensor(spectrum, dtype=torch.float64)
    return rotation @ torch.diag(values) @ rotation.T


SPECTRA = {
    "clustered": [5.0, 4.99, 4.98, 3.0, 2.99, *np.linspace(1, 0, 20)],
    "both signs": [5.0, -4.9, 4.0, -3.9, 1.0, *np.linspace(-0.5, 0.5, 20)],
    "negative": [-1.0, -2.0, -3.0, -8.0, *np.linspace(-0.5, -0.1, 56)],
    "rank three": [3.0, 2.0, 1.0],
}


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("basis_size", [None, 8])
def test_lanczos_finds_the_wanted_end(name: str, which: str, basis_size: int | None) -> None:
    matrix = matrix_with(SPECTRA[name])
    values = np.linalg.eigvalsh(matrix.numpy())
    key = {"LA": lambda v: -v, "SA": lambda v: v, "LM": lambda v: -abs(v)}[which]
    wanted = sorted(sorted(values, key=key)[:3], reverse=True)
    if name == "rank three" and which == "SA":
        wanted = [0.0, 0.0, 0.0]
    result = lanczos(DenseOperator(matrix), 3, which=which, tol=1e-9, basis_size=basis_size, max_matvecs=3000)
    np.testing.assert_allclose(result.eigenvalues, wanted, atol=1e-8)
    vectors = result.eigenvectors
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3, dtype=torch.float64), atol=1e-9, rtol=0)
    residuals = (matrix @ vectors - vectors * result.eigenvalues).norm(dim=0)
    assert (residuals < 1e-7).all()


def test_lanczos_counts_a_repeated_eigenvalue_as_often_as_it_occurs() -> None:
    """One start vector sees a repeated eigenvalue once; the exhausted space must be left to find the copies."""
    result = lanczos(DenseOperator(matrix_with([2.0, 2.0, 2.0, 1.0], size=10)), 4, tol=1e-9)
    np.testing.assert_allclose(result.eigenvalues, [2, 2, 2, 1], atol=1e-8)


WHICH = {"LA": lambda v: -v, "SA": lambda v: v, "LM": lambda v: -abs(v)}


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "spectrum",
    [[3, 3, 3, 3, 2, 1], [-3, -3, -2, 1, 1, 0.5], [2, 2, -2, -2, -2, 1], [3, 2, 1], [1] * 20],
    ids=["four copies", "copies at the lower end", "copies at both ends", "rank below k", "twenty copies"],
)
@pytest.mark.parametrize("basis_size", [None, 9])
def test_copies_are_not_missed(spectrum: list[float], which: str, dtype: torch.dtype, basis_size: int | None) -> None:
    values = np.array([*spectrum, *[0.0] * (200 - len(spectrum))])
    operator = DenseOperator(matrix_with(spectrum, size=200).to(dtype))
    result = lanczos(operator, 5, which=which, basis_size=basis_size)
    wanted = values[np.argsort(WHICH[which](values), kind="stable")[:5]]
    assert bool(result.converged.all())
    if which == "LM":  # of two copies that differ in sign either may be the fifth
        np.testing.assert_allclose(np.sort(result.eigenvalues.abs()), np.sort(abs(wanted)), atol=1e-5)
    else:
        np.testing.assert_allclose(result.eigenvalues, np.sort(wanted)[::-1], atol=1e-5)
    assert result.num_matvecs < 100


@pytest.mark.parametrize("seed", range(10))
def test_a_cluster_above_a_bulk_keeps_its_members(seed: int) -> None:
    bulk = np.random.default_rng(seed).uniform(-0.9, 0.9, 195)
    cluster = 1 + 1e-4 * np.linspace(-1, 1, 5)
    result = lanczos(DenseOperator(matrix_with([*cluster, *bulk], size=200)), 5, seed=seed)
    assert bool(result.converged.all())
    np.testing.assert_allclose(result.eigenvalues, np.sort(cluster)[::-1], atol=1e-4)


def test_converged_is_false_when_copies_may_be_left() -> None:
    """The budget ends between the first convergence and the probe's."""
    operator = DenseOperator(matrix_with([3.0, 3.0, 3.0, 2.9, 2.8, *np.linspace(2.7, 0, 150)], size=200))
    results = [lanczos(operator, 2, max_matvecs=budget) for budget in range(2, 80)]
    right = [np.allclose(result.eigenvalues, [3.0, 3.0], atol=1e-3) for result in results]
    sure = [bool(result.converged.all()) for result in results]
    assert all(is_right for is_right, is_sure in zip(right, sure, strict=True) if is_sure) and any(sure)
    assert any(bool((result.residuals <= result.tol).all()) for result in results if not bool(result.converged.all()))


@pytest.mark.parametrize("k", [3, 5])
def test_a_regression_with_several_outputs_repeats_every_eigenvalue(k: int) -> None:
    """The Hessian is 2 XᵀX / N once for each output."""
    torch.manual_seed(3)
    x, y = torch.randn(40, 6).double(), torch.randn(40, 4).double()
    model = nn.Linear(6, 4, bias=False).double()
    risk = EmpiricalRisk(model, [(x, y)], loss=lambda out, batch: (out - batch[1]).square().sum(dim=1))
    gram = np.linalg.eigvalsh(2 * x.T.numpy() @ x.numpy() / 40)[::-1]
    result = lanczos(HessianOperator(risk), k)
    np.testing.assert_allclose(result.eigenvalues, np.repeat(gram, 4)[:k], rtol=1e-5)
    assert bool(result.converged.all())


def test_a_head_at_zero_repeats_its_eigenvalues() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 10, bias=False).double()
    nn.init.zeros_(model.weight)
    risk = EmpiricalRisk(model, [(torch.randn(50, 16).double(), torch.randint(0, 10, (50,)))])
    operator = HessianOperator(risk)
    exact = np.linalg.eigvalsh(operator.to_dense().numpy())[::-1]
    assert exact[2] == pytest.approx(exact[0])
    np.testing.assert_allclose(lanczos(operator, 3).eigenvalues, exact[:3], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("solve", [lanczos, power_iteration])
def test_more_pairs_than_the_rank_are_found_in_few_products(
    solve: Callable[..., EigenResult], dtype: torch.dtype
) -> None:
    """Three examples of two classes: a rank of 3. Beyond it eigenvalues are rounding, and so are their residuals."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 2)).to(dtype)
    operator = GGNOperator(EmpiricalRisk(model, [(torch.randn(3, 8, dtype=dtype), torch.tensor([0, 1, 1]))]))
    exact = np.linalg.eigvalsh(operator.to_dense().double().numpy())[::-1]
    result = solve(operator, 5)
    assert result.num_matvecs < 60 and bool(result.converged.all())
    np.testing.assert_allclose(result.eigenvalues, exact[:5], atol=1e-5 * exact[0])
    distances = np.abs(result.eigenvalues.numpy()[:, None] - exact).min(axis=1)
    assert (distances <= result.error_bounds.numpy() + 1e-6 * exact[0]).all()


def test_exact_eigenvectors_are_recognised() -> None:
    matrix = matrix_with([5.0, 4.0, 3.5, 3.0, 2.5, *np.linspace(2, 0, 50)])
    vectors = torch.linalg.eigh(matrix)[1].flip(1)[:, :5]
    warm = power_iteration(DenseOperator(matrix), 5, start=vectors)
    assert warm.num_matvecs == 5 + 8 and bool(warm.converged.all())  # one a pair, and the look outside


def test_no_ghosts_after_many_steps() -> None:
    matrix = matrix_with([100.0, 1.0, 0.9, 0.8, 0.7, *np.linspace(0.6, 0, 100)], size=200)
    result = lanczos(DenseOperator(matrix.float()), 5, tol=1e-5, max_matvecs=500)
    np.testing.assert_allclose(result.eigenvalues, [100, 1, 0.9, 0.8, 0.7], rtol=1e-4)
    assert result.converged.all()


def test_all_eigenpairs() -> None:
    matrix = matrix_with(list(np.linspace(-1, 2, 12)), size=12)
    result = lanczos(DenseOperator(matrix), 12, tol=1e-10)
    np.testing.assert_allclose(result.eigenvalues, np.linspace(2, -1, 12), atol=1e-9)


def test_the_budget_is_kept_and_said() -> None:
    matrix = matrix_with(SPECTRA["clustered"])
    result = lanczos(DenseOperator(matrix), 3, tol=1e-14, max_matvecs=6)
    assert result.num_matvecs == 6 and not result.converged.all()
    result = power_iteration(DenseOperator(matrix), 3, tol=1e-14, max_matvecs=9)
    assert result.num_matvecs <= 9 and not result.converged.all()


def test_power_iteration_finds_large_magnitudes_of_either_sign() -> None:
    matrix = matrix_with([6.0, -5.0, 4.0, 1.0, -1.0, 0.5])
    result = power_iteration(DenseOperator(matrix), 3, tol=1e-8, max_matvecs=3000)
    np.testing.assert_allclose(result.eigenvalues, [6, 4, -5], atol=1e-9)
    assert result.converged.all()


@pytest.mark.parametrize("second", [-6.0, -5.999, -5.9])
def test_power_iteration_resolves_opposite_signs_of_one_size(second: float) -> None:
    matrix = matrix_with([6.0, second, 3.0, 1.0, -1.0, 0.5])
    result = power_iteration(DenseOperator(matrix), 3, tol=1e-8, max_matvecs=600)
    np.testing.assert_allclose(result.eigenvalues, [6, 3, second], atol=1e-8)
    assert result.converged.all()


def test_an_eigenvalue_lies_within_each_residual() -> None:
    matrix = matrix_with(SPECTRA["clustered"])
    values = np.linalg.eigvalsh(matrix.numpy())
    for result in (
        lanczos(DenseOperator(matrix), 3, max_matvecs=10),
        power_iteration(DenseOperator(matrix), 3, tol=0.05),
    ):
        for value, residual in zip(result.eigenvalues, result.residuals, strict=True):
            assert np.abs(values - float(value)).min() <= float(residual * value.abs()) * (1 + 1e-9)


def test_scipy_view() -> None:
    matrix = matrix_with([3.0, 2.0, 1.0, -2.5])
    values = eigsh(DenseOperator(matrix).to_scipy(), k=2, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(sorted(values), [2, 3], atol=1e-9)


@pytest.mark.parametrize("solve", [lanczos, power_iteration])
def test_bad_requests(solve) -> None:
    operator = DenseOperator(torch.eye(3))
    for k in (0, 4):
        with pytest.raises(ValueError, match="k: expected"):
            solve(operator, k)
    with pytest.raises(ValueError, match="tol"):
        solve(operator, 1, tol=0.0)
    with pytest.raises(FloatingPointError, match="not finite"):
        solve(DenseOperator(torch.full((3, 3), math.nan)), 1)


def test_an_operator_that_is_not_symmetric_is_refused() -> None:
    with pytest.raises(FloatingPointError, match="symmetric"):
        lanczos(DenseOperator(torch.triu(torch.ones(20, 20))), 2)
    with pytest.raises(ValueError, match="which"):
        lanczos(DenseOperator(torch.eye(3)), 1, which="XX")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="square"):
        DenseOperator(torch.ones(2, 3))
    with pytest.raises(ValueError, match="max_size"):
        DenseOperator(torch.eye(30)).to_dense(max_size=10)


def test_a_block_finds_the_copies_of_a_repeated_eigenvalue() -> None:
    operator = DenseOperator(matrix_with([3.0, 3.0, 3.0, 1.0]))
    result = lanczos(operator, 3, tol=1e-9, block_size=3)
    np.testing.assert_allclose(result.eigenvalues, [3.0, 3.0, 3.0], atol=1e-9)
    assert bool(result.converged.all())


@pytest.mark.parametrize("block_size", [2, 4])
@pytest.mark.parametrize("name", SPECTRA)
def test_blocks_find_the_wanted_end(name: str, block_size: int) -> None:
    matrix = matrix_with(SPECTRA[name])
    wanted = sorted(np.linalg.eigvalsh(matrix.numpy()), key=abs, reverse=True)[:3]
    result = lanczos(DenseOperator(matrix), 3, which="LM", tol=1e-9, block_size=block_size, max_matvecs=3000)
    np.testing.assert_allclose(result.eigenvalues, sorted(wanted, reverse=True), atol=1e-8)


@pytest.mark.parametrize("solve", [lanczos, power_iteration])
def test_a_warm_start_saves_products_along_a_trajectory(solve: Callable[..., EigenResult]) -> None:
    before = matrix_with([5.0, 4.0, 3.0, *np.linspace(2.5, 0, 57)])
    change = torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    operator = DenseOperator(before + 1e-4 * (change + change.T))
    earlier = solve(DenseOperator(before), 3, tol=1e-3)
    cold = solve(operator, 3, tol=1e-3)
    warm = solve(operator, 3, tol=1e-3, start=earlier.eigenvectors)
    assert bool(warm.converged.all()) and bool(cold.converged.all())
    np.testing.assert_allclose(warm.eigenvalues, cold.eigenvalues, rtol=1e-4)
    assert warm.num_matvecs < 0.7 * cold.num_matvecs


def test_a_warm_start_does_not_hide_what_it_misses() -> None:
    operator = DenseOperator(torch.diag(torch.tensor([9.0, 5.0, 4.0, *np.linspace(1, 0, 57)], dtype=torch.float64)))
    misleading = torch.eye(60, dtype=torch.float64)[:, 1:3] + 1e-3
    result = lanczos(operator, 2, tol=1e-6, start=misleading)
    np.testing.assert_allclose(result.eigenvalues, [9.0, 5.0], rtol=1e-8)


@pytest.mark.parametrize("solve", [lanczos, power_iteration])
def test_a_callback_follows_and_ends_the_run(solve: Callable[..., EigenResult]) -> None:
    operator = DenseOperator(matrix_with(SPECTRA["clustered"]))
    seen: list[int] = []

    def stop(num_matvecs: int, residual: float) -> bool:
        assert residual >= 0
        seen.append(num_matvecs)
        return num_matvecs >= 7

    result = solve(operator, 2, tol=1e-12, callback=stop)
    assert seen[:7] == [1, 2, 3, 4, 5, 6, 7]
    assert result.num_matvecs <= 9 and not bool(result.converged.all())


@pytest.mark.parametrize("solve", [lanczos, power_iteration])
def test_bad_starts_are_refused(solve: Callable[..., EigenResult]) -> None:
    for start in (torch.ones(3, 1), torch.ones(60), torch.full((60, 1), math.nan)):
        with pytest.raises(ValueError, match="start"):
            solve(DenseOperator(torch.eye(60)), 1, start=start)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(1, 25), double=st.booleans())
def test_any_symmetric_matrix(data: st.DataObject, n: int, double: bool) -> None:
    k = data.draw(st.integers(1, n))
    which = data.draw(st.sampled_from(["LA", "SA", "LM"]))
    values = data.draw(st.lists(st.integers(-4, 4), min_size=n, max_size=n))
    rotation = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)))[0]
    matrix = rotation @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ rotation.T
    dtype = torch.float64 if double else torch.float32
    result = lanczos(DenseOperator(matrix.to(dtype)), k, which=which, tol=1e-4)
    assert result.eigenvalues.shape == (k,) and result.eigenvectors.shape == (n, k)
    assert result.eigenvectors.dtype == dtype and result.eigenvalues.dtype == torch.float64
    gram = result.eigenvectors.double().T @ result.eigenvectors.double()
    torch.testing.assert_close(gram, torch.eye(k, dtype=torch.float64), atol=1e-5, rtol=0)
    spectrum = np.array(values, dtype=float)
    distances = np.abs(result.eigenvalues.numpy()[:, None] - spectrum).min(axis=1)
    allowed = result.residuals.numpy() * np.maximum(np.abs(result.eigenvalues.numpy()), 1) + 1e-4
    assert (distances <= allowed).all()
    extreme = {"LA": spectrum.max(), "SA": spectrum.min(), "LM": np.abs(spectrum).max()}[which]
    found = {"LA": result.eigenvalues[0], "SA": result.eigenvalues[-1], "LM": result.eigenvalues.abs().max()}[which]
    assert float(found) == pytest.approx(extreme, abs=1e-3)
