"""Spectra whose bulk is far from zero, as under a ridge penalty, and subspaces in which the loss is flat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape import (
    EmpiricalRisk,
    HessianOperator,
    lanczos,
    power_iteration,
    restricted_curvature,
    spectral_density,
)
from landscape.operators import DenseOperator, ProjectedOperator, RestrictedOperator
from landscape.operators.base import SymmetricOperator
from landscape.surfaces.directions import trajectory_plane


class Diagonal(SymmetricOperator):
    def __init__(self, entries: Tensor) -> None:
        self.entries, self.shape = entries, (len(entries), len(entries))
        self.dtype, self.device = entries.dtype, entries.device

    def matvec(self, vector: Tensor) -> Tensor:
        return self.entries * vector


@pytest.mark.parametrize("which", ["LA", "LM"])
@pytest.mark.parametrize("seed", range(3))
def test_one_eigenvalue_over_a_ridge_is_found(which: str, seed: int) -> None:
    torch.manual_seed(0)
    n = 10**5
    model, x = nn.Linear(n, 1, bias=False), torch.randn(1, n)
    batch = (x / x.norm(), torch.zeros(1, 1))
    risk = EmpiricalRisk(model, [batch], loss=lambda outputs, _: outputs.square().sum(1), l2=1.0)
    found = lanczos(HessianOperator(risk), 1, which=which, tol=1e-3, seed=seed)
    assert float(found.eigenvalues) == pytest.approx(4, rel=1e-3) and bool(found.converged)


@pytest.mark.parametrize("seed", range(3))
def test_copies_over_a_ridge_are_all_found(seed: int) -> None:
    torch.manual_seed(0)
    inputs = (
        torch.linalg.qr(torch.randn(2000, 6, dtype=torch.float64))[0].T
        * torch.tensor([1, 0.9, 0.8, 0.7, 0.6, 0.5])[:, None]
    )
    risk = EmpiricalRisk(
        nn.Linear(2000, 4, bias=False).double(), [(inputs, torch.zeros(6, 4))],
        loss=lambda outputs, _: outputs.square().sum(1), l2=5.0,
    )  # fmt: skip
    found = lanczos(HessianOperator(risk), 5, seed=seed)
    expected = torch.tensor([10 + 2 / 6] * 4 + [10 + 2 * 0.81 / 6], dtype=torch.float64)
    torch.testing.assert_close(found.eigenvalues, expected, rtol=1e-6, atol=0)
    assert bool(found.converged.all())


@pytest.mark.parametrize("seed", range(6))
def test_outliers_over_a_narrow_bulk_are_not_said_to_be_missing(seed: int) -> None:
    entries = torch.cat([torch.linspace(1, 1.01, 2997), torch.tensor([1.2, 1.1, 1.05])]).double()
    found = lanczos(Diagonal(entries), 3, tol=1e-2, seed=seed)
    good = (found.eigenvalues - torch.tensor([1.2, 1.1, 1.05]).double()).abs() < 1e-2
    assert bool((good | ~found.converged).all()) and bool(good[0])


@pytest.mark.parametrize("seed", range(4))
def test_work_goes_on_while_a_pair_is_not_resolved(seed: int) -> None:
    entries = torch.ones(20_000, dtype=torch.float64)
    entries[:2] = 1.05
    found = lanczos(Diagonal(entries), 2, seed=seed)
    assert bool(found.converged.all()) and found.eigenvalues.tolist() == pytest.approx([1.05, 1.05])


@pytest.mark.parametrize("seed", range(4))
def test_a_power_iteration_that_stands_still_in_a_bulk_is_not_converged(seed: int) -> None:
    entries = torch.ones(10**6, dtype=torch.float64)
    entries[0] = 1.9
    found = power_iteration(Diagonal(entries), 1, tol=1e-3, seed=seed)
    assert float(found.eigenvalues) == pytest.approx(1.9, rel=1e-3) or not bool(found.converged)


def test_an_unfinished_probe_is_no_part_of_a_density() -> None:
    operator = DenseOperator(torch.diag(torch.linspace(0, 1, 400, dtype=torch.float64)))
    options = {"num_steps": 50, "num_probes": 4, "width": 0.01}
    ended = spectral_density(operator, **options, callback=lambda count, _: count >= 101)  # type: ignore[arg-type]
    assert [len(nodes) for nodes in ended.nodes] == [50, 50]
    assert float(ended.density.max()) < 3


@pytest.mark.parametrize("storage", ["float32", "disk"])
def test_a_tiny_spectrum_has_the_density_of_a_large_one(storage: str) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(40, 10), nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 1))
    y = model(x).detach()
    risk = EmpiricalRisk(model, [(x, y)], loss=lambda outputs, batch: (1e-12 * (outputs - batch[1])).square().sum(1))
    operator = HessianOperator(risk, check=False)
    exact, found = (spectral_density(operator, num_steps=30, storage=kind) for kind in ("float64", storage))
    assert [len(nodes) for nodes in found.nodes] == [30] * 4
    assert float(found.nodes[0].max()) == pytest.approx(float(exact.nodes[0].max()), rel=1e-3)


def test_a_subspace_in_which_the_loss_is_flat_has_no_curvature() -> None:
    """Softmax cancels what all logits share."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 3))
    risk = EmpiricalRisk(model, [(torch.randn(60, 10), torch.randint(0, 3, (60,)))])
    operator, layout = HessianOperator(risk), risk.layout
    columns = []
    for name, column in [("2.bias", None)] + [("2.weight", j) for j in range(20)]:
        parts = {key: torch.zeros(shape) for key, shape in zip(layout.names, layout.shapes, strict=True)}
        parts[name][... if column is None else (slice(None), column)] = 1
        columns.append(layout.join(parts))
    basis = torch.stack(columns, dim=1)
    basis = basis / basis.norm(dim=0)
    top = lanczos(operator, 3, which="LM")
    whole = float(top.eigenvalues.abs().max())
    for found in (lanczos(RestrictedOperator(operator, basis), 3), lanczos(ProjectedOperator(operator, basis), 3)):
        assert float(found.eigenvalues.abs().max()) < 1e-5 * whole
        assert bool((found.error_bounds >= found.eigenvalues.abs()).all())  # zero is among what they may be
    assert float(restricted_curvature(operator, basis, top.eigenvalues).ratios.max()) < 1e-5
    one = lanczos(ProjectedOperator(operator, basis[:, :1]), 1)
    assert one.num_matvecs < 40 and float(one.error_bounds) >= float(one.eigenvalues.abs())


def test_results_of_all_kinds_are_tables() -> None:
    plane = trajectory_plane(torch.randn(6, 30))
    assert plane.to_frame().shape == (6, 2)


CALLS: list[tuple[Callable[[], object], str]] = [
    (lambda: power_iteration(DenseOperator(torch.eye(3)), 1, seed=None), "seed: expected a whole number"),  # type: ignore[arg-type]
    (lambda: power_iteration(DenseOperator(torch.eye(3)), 1, max_matvecs="x"), "max_matvecs: expected a count"),  # type: ignore[arg-type]
    (lambda: power_iteration(DenseOperator(torch.eye(3)), 1, callback=3), "callback: expected a function"),  # type: ignore[arg-type]
    (lambda: spectral_density(DenseOperator(torch.eye(3)), callback=3), "callback: expected a function"),  # type: ignore[arg-type]
    (lambda: DenseOperator(torch.eye(3)).matvec([1.0]), "vector: expected a tensor"),  # type: ignore[arg-type]
    (lambda: DenseOperator(torch.eye(3)).matvec(torch.ones(4)), "vector: expected a tensor of shape"),
    (lambda: DenseOperator(torch.eye(3)).matmat(torch.ones(3)), "matrix: expected a tensor of vectors as columns"),
    (lambda: restricted_curvature(DenseOperator(torch.eye(3)), torch.eye(3)[:, :1], [1.0]), "eigenvalues: expected a"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "message"), CALLS)
def test_arguments_of_other_kinds_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_numpy_sees_the_operator_as_it_is() -> None:
    matrix = torch.diag(torch.arange(4.0))
    view, x = DenseOperator(matrix).to_scipy(), np.arange(4.0, dtype=np.float32)
    np.testing.assert_allclose(view @ x[::-1], matrix.numpy() @ x[::-1])
    with pytest.raises(ValueError, match="expected real numbers"):
        view @ (1j * x)
    assert float(DenseOperator(matrix).matvec(torch.ones(4, dtype=torch.float64)).sum()) == 6
