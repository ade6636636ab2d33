"""Second derivatives by formula are those of torch's own layers, and left to torch where they cannot be."""

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from landscape import EmpiricalRisk, GGNOperator, HessianOperator, next_token_cross_entropy
from landscape.operators import closed_forms
from landscape.operators.closed_forms import ClosedForms

Function = Callable[..., Tensor]
Parts = list[Tensor | None]


@pytest.fixture(autouse=True)
def linear_layers_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_forms, "_FEW", 0)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def derivatives(function: Function, leaves: Sequence[Tensor], *, by_formula: bool) -> tuple[Tensor, Parts, Parts]:
    """Value, gradient and product of the Hessian with one vector."""
    with ClosedForms() if by_formula else nullcontext():
        value = function(*leaves)
    gradient = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
    curved = [part for part in gradient if part is not None and part.requires_grad]
    vectors = [drawn(*part.shape, seed=number).detach().to(part.dtype) for number, part in enumerate(curved)]
    product = torch.autograd.grad(curved, leaves, vectors, allow_unused=True)
    return value.detach(), [part if part is None else part.detach() for part in gradient], list(product)


def expect_equal(ours: Parts, theirs: Parts) -> None:
    for one, other in zip(ours, theirs, strict=True):
        missing = torch.zeros(())
        torch.testing.assert_close(
            missing if one is None else one, missing if other is None else other, check_dtype=False
        )


X, WIDE, W, B = drawn(3, 5, 7), drawn(6, 7, seed=1), drawn(7, seed=2), drawn(7, seed=3)
C = drawn(6, seed=4)


@pytest.mark.parametrize(
    ("function", "leaves"),
    [
        (lambda x: F.gelu(x * x + x).pow(3).sum(), [X]),
        (lambda x: F.gelu(x * x + x, approximate="tanh").pow(3).sum(), [X]),
        (lambda x: F.silu(3 * x).pow(3).sum(), [X]),
        (lambda x: F.silu(3 * x, inplace=True).pow(3).sum(), [X]),
        (lambda x, w, b: F.layer_norm(x * x, (7,), w, b).sin().sum(), [X, W, B]),
        (lambda x: F.layer_norm(x * x, (7,)).sin().sum(), [X]),
        (lambda x, w: F.layer_norm(x * x, (7,), weight=w, eps=0.1).sin().sum(), [X, W]),
        (lambda w, b: F.layer_norm(X.detach(), (7,), w, b).sin().sum(), [W, B]),
        (lambda x: F.layer_norm(x * x, (7,), W.detach(), B.detach()).sin().sum(), [X]),
        (lambda x: F.layer_norm(x * x, (5, 7)).sin().sum(), [X]),
        (lambda x, w, b: F.linear(x * x, w, b).sin().sum(), [X, WIDE, C]),
        (lambda x, w: F.linear(x * x, w).sin().sum(), [X, WIDE]),
        (lambda x: F.linear(x * x, WIDE.detach(), C.detach()).sin().sum(), [X]),
        (lambda w: F.linear(X.detach(), w).sin().sum(), [WIDE]),
        (lambda b: F.linear(X.detach(), WIDE.detach(), b).sin().sum(), [C]),
        (lambda x, b: F.linear(x * x, WIDE.detach(), b).sin().sum(), [X, C]),
        (lambda x, w: F.linear(x[0, 0], w).sin().sum(), [X, WIDE]),
        (lambda x, w: F.linear(x.transpose(0, 1), w).transpose(0, 1)[:, ::2].sin().sum(), [X, WIDE]),
        (lambda x, w: F.linear(x.sin(), w[0]).sin().sum(), [X, WIDE]),
        (lambda w: F.linear(F.linear(X.detach(), w), w.t()).sin().sum(), [WIDE]),
        (
            lambda x, w, b, wide: (
                F.linear(F.gelu(F.layer_norm(F.silu(x), (7,), w, b)) + x, wide, C).logsumexp(-1).sum()
            ),
            [X, W, B, WIDE],
        ),
        (lambda x: F.gelu(x).sum() + F.layer_norm(x, (7,), W, B).sum() + F.linear(x, WIDE).sum(), [X]),
    ],
)
def test_derivatives_are_those_of_torch(function: Function, leaves: Sequence[Tensor]) -> None:
    ours, theirs = (derivatives(function, leaves, by_formula=by_formula) for by_formula in (True, False))
    assert torch.equal(ours[0], theirs[0])
    expect_equal(ours[1], theirs[1])
    expect_equal(ours[2], theirs[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.silu])
def test_activations_far_from_zero(function: Function, dtype: torch.dtype) -> None:
    points = torch.tensor(
        [-1e30, -1e20, -1e5, -200.0, -50.0, -8.0, 0.0, 8.0, 50.0, 200.0, 1e5, 1e20, 1e30], dtype=dtype
    )
    x = points.requires_grad_()
    _, gradient, product = derivatives(lambda x: function(x).sum(), [x], by_formula=True)
    assert gradient[0] is not None and product[0] is not None
    far = points.abs() >= 200
    torch.testing.assert_close(gradient[0][far], (points[far] > 0).to(dtype))
    assert bool(product[0].isfinite().all())
    assert float(product[0][far].abs().max()) < 1e-80


def test_a_rows_sum_may_vanish() -> None:
    zeros = torch.zeros(2, 7, dtype=torch.float64, requires_grad=True)
    ours, theirs = (
        derivatives(lambda x, w: F.layer_norm(x, (7,), w, B).pow(2).sum(), [zeros, W], by_formula=by_formula)
        for by_formula in (True, False)
    )
    expect_equal(ours[1] + ours[2], theirs[1] + theirs[2])


class InPlace(nn.Module):
    """Writes to what layers give, as torch allows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(torch.tanh_(self.first(x)))
        hidden = F.gelu(hidden.mul_(2.0)).add_(1)
        logits: Tensor = self.last(F.silu(hidden, inplace=True))
        return logits.mul_(0.5)


class GradientPenalty(nn.Module):
    """Its output is its own derivative in the input, as in networks of energies and forces."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: nn.Sequential = nn.Sequential(
            nn.Linear(5, 6), nn.Tanh(), nn.GELU(), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            energy = self.layers(x).sum()
            (forces,) = torch.autograd.grad(energy, x, create_graph=True)
        return forces[:, :3]


class Transformed(nn.Module):
    """The same by `torch.func`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = GradientPenalty().layers

    def forward(self, x: Tensor) -> Tensor:
        def energy(row: Tensor) -> Tensor:
            total: Tensor = self.layers.forward(row[None]).sum()
            return total

        return torch.func.vmap(torch.func.grad(energy))(x)[:, :3]


def expect_central_differences(
    model: nn.Module, batches: Sequence[Any], loss: Any = None, tolerance: float = 1e-6
) -> None:
    risk = EmpiricalRisk(model, batches, loss, dtype=torch.float64)
    operator = HessianOperator(risk)
    v = drawn(risk.num_params).detach()
    step = 1e-5
    expected = (risk.gradient(risk.theta + step * v) - risk.gradient(risk.theta - step * v)) / (2 * step)
    assert float((operator.matvec(v) - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("kind", [InPlace, GradientPenalty, Transformed])
def test_any_models_products_are_central_differences(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    batches = [(drawn(4, 5, seed=seed).detach(), torch.tensor([0, 1, 2, 1])) for seed in range(2)]
    expect_central_differences(kind().double(), batches)


def bert() -> tuple[nn.Module, list[Any]]:
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        num_labels=3,
    )
    return BertForSequenceClassification(config), [
        {"input_ids": torch.arange(24).view(3, 8), "labels": torch.tensor([0, 2, 1])}
    ]


def llama() -> tuple[nn.Module, list[Any]]:
    config = LlamaConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
    tokens = torch.arange(24).view(3, 8)
    return LlamaForCausalLM(config), [{"input_ids": tokens, "labels": tokens}]


def test_transformers_products_are_central_differences() -> None:
    torch.manual_seed(0)
    model, batches = bert()
    expect_central_differences(model.double(), batches)
    model, batches = llama()  # whose norms compute in float32, whatever the weights are
    expect_central_differences(model.double(), batches, next_token_cross_entropy, tolerance=1e-3)


def test_gauss_newton_matrices_are_those_of_torchs_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    batch = (drawn(4, 5).detach(), torch.tensor([0, 1, 2, 1]))
    risk = EmpiricalRisk(InPlace().double(), [batch])
    ours = GGNOperator(risk).to_dense()
    monkeypatch.setattr(closed_forms, "_FORMS", {})
    torch.testing.assert_close(ours, GGNOperator(risk).to_dense())


def test_products_cannot_be_differentiated_again() -> None:
    for function in (F.gelu, lambda x: F.layer_norm(x, (7,)), lambda x: F.linear(x, WIDE)):
        with ClosedForms():
            value = function(X).sin().sum()
        (gradient,) = torch.autograd.grad(value, X, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiat"):
            torch.autograd.grad(gradient.pow(2).sum(), X, create_graph=True)[0].sum().backward()


def test_other_tensors_and_derivatives_keep_torchs_own() -> None:
    half, row = torch.ones(2, 7, dtype=torch.bfloat16, requires_grad=True), torch.ones(2, 7)
    mixed = nn.LayerNorm(7).double()
    with ClosedForms():
        assert "Gelu" in type(F.gelu(half).grad_fn).__name__
        assert type(F.gelu(X).grad_fn).__name__ != "GeluBackward0"
        with pytest.raises(RuntimeError):
            mixed(row)  # torch's own error
        _, slope = torch.func.jvp(F.gelu, (row,), (row,))[:2]
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(row, row)
            assert forward_ad.unpack_dual(F.gelu(dual)).tangent is not None
        per_row = torch.func.vmap(torch.func.grad(lambda x: F.gelu(x).sum()))(row)
    torch.testing.assert_close(slope, per_row)


def test_frozen_layers_cost_what_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    with ClosedForms():
        assert F.gelu(X.detach()).grad_fn is F.layer_norm(X.detach(), (7,)).grad_fn is None
        frozen = F.linear(X, WIDE.detach()).grad_fn
    assert type(frozen) is type(F.linear(X, WIDE.detach()).grad_fn)
    torch.manual_seed(0)
    model, batches = bert()
    names = [name for name, _ in model.named_parameters() if "query.weight" in name]
    risk = EmpiricalRisk(model, batches, params=names)
    ours = HessianOperator(risk, check=False)
    monkeypatch.setattr(closed_forms, "_FORMS", {})
    theirs = HessianOperator(risk, check=False)
    torch.testing.assert_close(ours.matvec(risk.theta), theirs.matvec(risk.theta), rtol=1e-4, atol=1e-6)
    assert ours.kept_bytes <= 1.05 * theirs.kept_bytes


def test_graphs_are_freed() -> None:
    batch = (drawn(64, 5).detach(), torch.zeros(64, dtype=torch.long))
    risk = EmpiricalRisk(InPlace().double(), [batch])

    def tensors() -> int:
        return sum(isinstance(found, Tensor) for found in gc.get_objects())

    HessianOperator(risk, check=False).matvec(risk.theta)
    gc.collect()
    before = tensors()
    gc.disable()
    try:
        for _ in range(3):
            HessianOperator(risk, check=False).matvec(risk.theta)
        assert tensors() <= before + 3
    finally:
        gc.enable()
