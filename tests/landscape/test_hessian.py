"""The Hessian operator and the risk against dense float64 references, on a stock Hugging Face model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape import EmpiricalRisk, HessianOperator, lanczos, power_iteration
from landscape.backends.pyhessian import pyhessian_eigenvalues
from landscape.losses import zero_one
from tests.landscape.conftest import ENCODER, tiny_vit
from tests.reference import dense_hessian

Batches = list[dict[str, Tensor]]


def dense_reference(model: nn.Module, batches: Batches, risk: EmpiricalRisk) -> Tensor:
    """Hessian over all examples in one batch, written without the package."""
    model = model.double().eval()
    pixels = torch.cat([batch["pixel_values"] for batch in batches]).double()
    labels = torch.cat([batch["labels"] for batch in batches])
    shapes = [dict(model.named_parameters())[name].shape for name in risk.layout.names]
    point = torch.cat([dict(model.named_parameters())[name].detach().flatten() for name in risk.layout.names])

    def loss(theta: Tensor) -> Tensor:
        chunks = theta.split([math.prod(shape) for shape in shapes])
        weights = {n: c.view(s) for n, c, s in zip(risk.layout.names, chunks, shapes, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            return F.cross_entropy(functional_call(model, weights, kwargs={"pixel_values": pixels}).logits, labels)

    return dense_hessian(loss, point)


@pytest.fixture
def reference(digit_batches: Batches) -> Tensor:
    model = tiny_vit()
    return dense_reference(model, digit_batches, EmpiricalRisk(model, digit_batches, params=ENCODER))


def test_hessian_on_a_vision_transformer(digit_batches: Batches, reference: Tensor) -> None:
    risk = EmpiricalRisk(tiny_vit(), digit_batches, params=ENCODER, dtype=torch.float64)
    operator = HessianOperator(risk)
    dense = operator.to_dense()
    torch.testing.assert_close(dense, reference, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(dense, dense.T, rtol=1e-9, atol=1e-12)
    single = HessianOperator(EmpiricalRisk(tiny_vit(), digit_batches, params=ENCODER))
    vector = torch.randn(risk.num_params)
    exact = reference @ vector.double()
    assert (single.matvec(vector) - exact).norm() / exact.norm() < 1e-5


def test_reference_agrees_with_finite_differences(digit_batches: Batches, reference: Tensor) -> None:
    """Central differences of the gradient: error O(h²) plus rounding/h, here below 1e-7 relative."""
    risk = EmpiricalRisk(tiny_vit(), digit_batches, params=ENCODER, dtype=torch.float64)
    vector, step = torch.randn(risk.num_params, dtype=torch.float64), 1e-5
    difference = (risk.gradient(risk.theta + step * vector) - risk.gradient(risk.theta - step * vector)) / (2 * step)
    assert (difference - reference @ vector).norm() / (reference @ vector).norm() < 1e-7


def test_three_solvers_agree_with_the_dense_spectrum(digit_batches: Batches, reference: Tensor) -> None:
    risk = EmpiricalRisk(tiny_vit(), digit_batches, params=ENCODER, dtype=torch.float64)
    values = np.linalg.eigvalsh(reference.numpy())
    top = torch.tensor(sorted(values, key=abs, reverse=True)[:3])
    operator = HessianOperator(risk)
    ours = lanczos(operator, 3, which="LM", tol=1e-8)
    torch.testing.assert_close(ours.eigenvalues, top.sort(descending=True).values, rtol=1e-10, atol=0)
    power = power_iteration(operator, 3, tol=1e-4, max_matvecs=3000)
    torch.testing.assert_close(power.eigenvalues, ours.eigenvalues, rtol=1e-5, atol=0)
    state = torch.get_rng_state()
    third = pyhessian_eigenvalues(risk, 3)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(third.eigenvalues, ours.eigenvalues, rtol=2e-3, atol=0)
    for result in (ours, power, third):
        images = operator.matmat(result.eigenvectors)
        exact = (images - result.eigenvectors * result.eigenvalues).norm(dim=0) / result.eigenvalues.abs()
        torch.testing.assert_close(result.residuals, exact, rtol=1e-3, atol=1e-9)


def test_sdpa_and_eager_attention_have_one_hessian(digit_batches: Batches) -> None:
    vector = torch.randn(EmpiricalRisk(tiny_vit(), digit_batches, params=ENCODER).num_params)
    products = [
        HessianOperator(EmpiricalRisk(tiny_vit(kind), digit_batches, params=ENCODER, dtype=torch.float64)).matvec(
            vector.double()
        )
        for kind in ("sdpa", "eager")
    ]
    # The eager path of transformers computes its softmax in float32 whatever the model's precision.
    assert (products[0] - products[1]).norm() / products[0].norm() < 1e-5


def test_recomputation_equals_kept_graphs(digit_batches: Batches) -> None:
    risk = EmpiricalRisk(tiny_vit(), digit_batches, params=ENCODER)
    vectors = torch.randn(risk.num_params, 2)
    kept, recomputed = HessianOperator(risk), HessianOperator(risk, graph_budget=0)
    torch.testing.assert_close(kept.matmat(vectors), recomputed.matmat(vectors), rtol=1e-6, atol=1e-8)
    stacked = torch.stack([kept.matvec(column) for column in vectors.T], dim=1)
    torch.testing.assert_close(kept.matmat(vectors), stacked, rtol=0, atol=0)


class LinearWithUnusedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.unused = nn.Linear(4, 2, bias=False), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_least_squares_closed_form() -> None:
    """Mean of ‖Wx − y‖² has the Hessian 2/N XᵀX for every row of W, and zero for weights that are not used."""
    model = LinearWithUnusedWeights().double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    risk = EmpiricalRisk(model, batches, loss=lambda out, batch: (out - batch[1]).square().sum(dim=1))
    names = risk.layout.names
    expected = torch.zeros(11, 11, dtype=torch.float64)
    start = risk.layout.offsets[names.index("linear.weight")]
    expected[start : start + 8, start : start + 8] = torch.kron(torch.eye(2, dtype=torch.float64), 2 / 9 * x.T @ x)
    torch.testing.assert_close(HessianOperator(risk).to_dense(), expected)


def test_measuring_leaves_the_model_alone(digit_batches: Batches) -> None:
    model = tiny_vit().train()
    model.vit.layernorm.eval()  # a mixed state must come back as it was
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    risk = EmpiricalRisk(model, digit_batches, params=ENCODER)
    first, again = risk.loss(), risk.loss()
    HessianOperator(risk).matvec(torch.ones(risk.num_params))
    assert first == again
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_examples_weigh_the_same_in_a_ragged_batch(digit_batches: Batches) -> None:
    whole = [{key: torch.cat([batch[key] for batch in digit_batches]) for key in digit_batches[0]}]
    model = tiny_vit()
    ragged, single = (EmpiricalRisk(model, batches, params=ENCODER) for batches in (digit_batches, whole))
    assert ragged.loss() == pytest.approx(single.loss(), rel=1e-6)
    torch.testing.assert_close(ragged.gradient(), single.gradient(), rtol=1e-4, atol=1e-7)
    errors = EmpiricalRisk(model, digit_batches, loss=zero_one).per_example_losses()
    with torch.no_grad():
        predicted = model.eval()(pixel_values=whole[0]["pixel_values"]).logits.argmax(dim=1)
    assert torch.equal(errors, (predicted != whole[0]["labels"]).float())


def test_half_precision_models_are_measured_in_float32(digit_batches: Batches) -> None:
    model = tiny_vit().bfloat16()
    risk = EmpiricalRisk(model, digit_batches, params=ENCODER)
    assert risk.gradient().dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": "nothing"}, "params"),
        ({"params": ["nothing"]}, "no parameter 'nothing'"),
        ({"loss": lambda out, batch: out.logits.mean()}, "one loss per example"),
    ],
)
def test_bad_risks_are_refused(digit_batches: Batches, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmpiricalRisk(tiny_vit(), digit_batches, **options).loss()
    with pytest.raises(ValueError, match="at least one batch"):
        EmpiricalRisk(tiny_vit(), [])


def test_a_loss_that_is_not_finite_names_its_batch(digit_batches: Batches) -> None:
    digit_batches[1]["pixel_values"] = torch.full_like(digit_batches[1]["pixel_values"], math.inf)
    with pytest.raises(ValueError, match="the loss of batch 1 is NaN, and some of its inputs or labels are not finite"):
        EmpiricalRisk(tiny_vit(), digit_batches, params=ENCODER)
    with pytest.raises(FloatingPointError, match="batch 1"):
        HessianOperator(EmpiricalRisk(tiny_vit(), digit_batches, params=ENCODER, check=False))
