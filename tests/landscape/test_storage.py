"""A Krylov basis in float32, in main memory or on disk: the same results, and a default that knows the memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from landscape import lanczos, spectral_density, trust_region_maximum
from landscape.algorithms import storage as storage_room
from landscape.algorithms.krylov import KrylovBasis
from landscape.algorithms.storage import Rows
from landscape.operators import DenseOperator

STORAGES = ["float64", "float32", "cpu", "disk"]


def matrix(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(80, 80, generator=generator, dtype=torch.float64)).Q
    values = torch.cat([torch.tensor([5.0, 3.0, 3.0, 2.0, -4.0]), torch.linspace(-0.5, 0.5, 75)]).double()
    return (rotation * values @ rotation.T).to(dtype)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenpairs_do_not_depend_on_the_storage(storage: str, dtype: torch.dtype) -> None:
    result = lanczos(DenseOperator(matrix(dtype)), 4, which="LM", tol=1e-4, storage=storage)
    assert result.storage == storage and bool(result.converged.all())
    expected = torch.tensor([5.0, 3.0, 3.0, -4.0], dtype=torch.float64)
    assert bool(((result.eigenvalues - expected).abs() <= result.error_bounds + 1e-6).all())
    gram = result.eigenvectors.double().T @ result.eigenvectors.double()
    torch.testing.assert_close(gram, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("storage", STORAGES)
def test_density_and_trust_region_do_not_depend_on_it(storage: str) -> None:
    operator = DenseOperator(matrix(torch.float32))
    density, expected = (spectral_density(operator, num_steps=20, storage=s).density for s in (storage, "float64"))
    torch.testing.assert_close(density, expected, rtol=1e-3, atol=1e-3)
    gradient = torch.ones(80)
    rises = [trust_region_maximum(operator, gradient, 0.5, storage=s).predicted_rise for s in (storage, "float64")]
    assert rises[0] == pytest.approx(rises[1], rel=1e-5)


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_are_multiplied_in_float64(storage: str) -> None:
    rows = Rows(3, DenseOperator(matrix(torch.float32)), storage)
    vectors = torch.randn(3, 80, dtype=torch.float64).float().double()  # float32 holds them exactly
    for index, vector in enumerate(vectors):
        rows[index] = vector
    probe, coefficients = torch.randn(80, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    torch.testing.assert_close(rows.inner(probe, 3), vectors @ probe, rtol=1e-12, atol=1e-12)
    rounding = torch.finfo(torch.float32).eps if storage in ("float32", "disk") else 1e-12
    for which, chosen in ((2, vectors[:2]), ([2, 0], vectors[[2, 0]])):
        sums = rows.combine(coefficients, which)
        assert sums.dtype == rows.dtype
        torch.testing.assert_close(sums.double(), chosen.T @ coefficients, rtol=rounding, atol=rounding)
    rows.rotate(torch.cat([coefficients, coefficients[:1]]))
    expected = vectors.T @ torch.cat([coefficients, coefficients[:1]])
    torch.testing.assert_close(rows.combine(torch.eye(2).double(), 2).double(), expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("storage", ["float32", "disk"])
def test_pieces_of_a_row_give_what_the_row_gives(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_room, "_PIECE_BYTES", 8 * 3 * 7)  # seven of eighty entries of three rows
    operator = DenseOperator(matrix(torch.float32))
    result = lanczos(operator, 3, tol=1e-4, storage=storage, basis_size=8)
    assert bool(result.converged.all())
    torch.testing.assert_close(result.eigenvalues, torch.tensor([5.0, 3.0, 3.0]).double(), rtol=1e-5, atol=0)


def test_the_default_takes_less_where_float64_would_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    single, double = (DenseOperator(matrix(dtype)) for dtype in (torch.float32, torch.float64))
    assert KrylovBasis(single, 10, 0).storage == "float64"
    product = 8 * 80 * 4  # a quarter of the free memory has to hold the vectors of a product, too
    monkeypatch.setattr(storage_room, "free_bytes", lambda device: 4 * (20 * 80 * 8 + product) - 1)
    assert KrylovBasis(single, 10, 0).storage == "float32"
    assert KrylovBasis(double, 10, 0).storage == "disk"  # whose products have more digits than float32
    assert KrylovBasis(single, 10, 0, keep_products=False).storage == "float64"
    assert lanczos(single, 1, basis_size=10).storage == "float32"
    monkeypatch.setattr(storage_room, "free_bytes", lambda device: 4 * (20 * 80 * 4 + product) - 1)
    assert KrylovBasis(single, 10, 0).storage == "disk"
    monkeypatch.setattr(storage_room, "free_bytes", lambda device: 0)
    found = trust_region_maximum(double, torch.ones(80, dtype=torch.float64), 0.5, tol=1e-30)
    assert found.num_matvecs == 20 and not found.converged  # and says so
    with pytest.raises(ValueError, match="storage: expected one of auto, float64, float32, cpu, disk, got 'tape'"):
        lanczos(single, 1, storage="tape")
