"""PyHessian and the eigensolvers asked for what they cannot give, flat losses, and models that hold no numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from landscape import (
    DenseOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    lanczos,
    power_iteration,
    worst_case_sharpness,
)
from landscape.backends.pyhessian import pyhessian_density, pyhessian_eigenvalues, pyhessian_trace


def risk() -> EmpiricalRisk:
    torch.manual_seed(0)
    batches = [(torch.randn(3, 4).double(), torch.randint(0, 3, (3,))) for _ in range(2)]
    return EmpiricalRisk(nn.Sequential(nn.Linear(4, 3)).double(), batches)


OPERATOR = DenseOperator(torch.diag(2.0 ** -torch.arange(20, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pyhessian_density(risk(), width=-1.0), "width: expected a positive standard deviation"),
        (lambda: pyhessian_density(risk(), width=0.0), "width: expected a positive standard deviation"),
        (lambda: pyhessian_density(risk(), num_probes=1), "num_probes: expected a count of at least 2"),
        (lambda: pyhessian_density(risk(), num_steps=0), "num_steps: expected a count"),
        (lambda: pyhessian_trace(risk(), max_matvecs=0), "max_matvecs: expected a count"),
        (lambda: pyhessian_trace(risk(), seed="a"), "seed: expected a whole number"),
        (lambda: pyhessian_trace(HessianOperator(risk())), "risk: expected an EmpiricalRisk"),
        (lambda: pyhessian_eigenvalues(risk(), 17), "k: expected at most n = 15 eigenpairs, got 17"),
        (lambda: pyhessian_eigenvalues(risk(), 0), "k: expected a count"),
        (lambda: pyhessian_eigenvalues(risk(), 1, tol="a"), "tol: expected a number"),
        (lambda: lanczos(OPERATOR, True), "k: expected 1 <= k"),
        (lambda: lanczos(OPERATOR, 1, start=[1.0] * 20), "start: expected a tensor of real vectors"),
        (lambda: lanczos(OPERATOR, 1, start=torch.ones(20, 1) * 1j), "start: expected a tensor of real vectors"),
        (lambda: lanczos(OPERATOR, 1, tol="1e-3"), "tol: expected a number, got '1e-3'"),
        (lambda: power_iteration(OPERATOR, 1, tol="a"), "tol: expected a number, got 'a'"),
        (lambda: lanczos(OPERATOR, 1, max_matvecs=0), "max_matvecs: expected a count"),
        (lambda: lanczos(OPERATOR, 1, basis_size=-4), "basis_size: expected a count"),
        (lambda: lanczos(OPERATOR, 1, block_size=2.5), "block_size: expected a count"),
        (lambda: lanczos(OPERATOR, 1, seed=None), "seed: expected a whole number"),
        (lambda: lanczos(OPERATOR, 1, callback=3), "callback: expected a function"),
        (lambda: EmpiricalRisk(nn.Linear(2, 2, device="meta"), [(torch.zeros(2, 2), torch.zeros(2).long())]),
         "weight is on the meta device and has no values"),
        (lambda: EmpiricalRisk(nn.Linear(2, 2), [(torch.zeros(2, 2), torch.zeros(2).long())], l2="a"), "l2: expected"),
        (lambda: risk().select(nn.Linear(2, 2)), "params: expected names, .* got a Linear"),
        (lambda: risk().select(lambda name, parameter: True), "params: expected a predicate on names"),
        (lambda: worst_case_sharpness(risk(), 0.1, subspace=torch.eye(14)[:, :2]), r"subspace: .* \(15, k\)"),
        (lambda: worst_case_sharpness(risk(), 0.1, starts=torch.ones(15)), "starts: expected directions by name"),
    ],
)  # fmt: skip
def test_what_cannot_be_given_is_refused_in_a_sentence(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_pyhessian_knows_a_loss_without_curvature() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w

    flat = EmpiricalRisk(Linear(), [(torch.randn(4, 3), torch.zeros(4))], loss=lambda out, _: out)
    assert pyhessian_trace(flat).trace == 0 and float(pyhessian_eigenvalues(flat, 1).eigenvalues[0]) == 0


def test_pyhessian_refuses_a_part_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    one = risk()
    monkeypatch.setattr(one.ranks, "count", 2)
    for call in (lambda: pyhessian_eigenvalues(one, 1), lambda: pyhessian_trace(one), lambda: pyhessian_density(one)):
        with pytest.raises(ValueError, match="PyHessian knows no process group"):
            call()


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_the_loss_does_not_feel_have_no_curvature(kind: type, dtype: torch.dtype) -> None:
    """Softmax cancels the bias of the keys: what is left of products is rounding, which is not symmetric."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=3, **sizes))
    batch = {"input_ids": torch.randint(3, 20, (8, 6)), "labels": torch.randint(0, 3, (8,))}
    whole = EmpiricalRisk(model, [batch], dtype=dtype)
    for layer in range(2):
        name = f"bert.encoder.layer.{layer}.attention.self.key.bias"
        found = lanczos(kind(whole.select([name])), 2)
        assert float(found.eigenvalues.abs().max()) < 1e-6 * whole.loss()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_curvature_that_autograd_does_not_see_is_no_flat_loss(dtype: torch.dtype, strength: float) -> None:
    """Products are exactly 0, and the gradient changes all the same."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return strength * x.square()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return (grad * 2 * strength * x).detach() + 0.0 * grad

    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.linspace(-1, 1, 50))

        def forward(self, x: Tensor) -> Tensor:
            return x * Once.apply(self.w).sum()

    bent = EmpiricalRisk(Squares(), [(torch.ones(4), torch.zeros(4))], loss=lambda out, _: out, dtype=dtype)
    with pytest.raises(ValueError, match="second derivatives are not those of its first ones"):
        HessianOperator(bent)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("storage", ["auto", "disk"])
def test_a_spectrum_of_any_scale_is_found_in_single_precision(scale: float, storage: Any) -> None:
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(150, 150, dtype=torch.float64))
    values = scale / torch.arange(1, 151, dtype=torch.float64)
    found = lanczos(DenseOperator((q @ torch.diag(values) @ q.T).float()), 1, storage=storage)
    assert bool(found.converged.all()) and float(found.eigenvalues[0]) == pytest.approx(scale, rel=1e-5)
    assert math.isfinite(float(found.residuals[0]))
