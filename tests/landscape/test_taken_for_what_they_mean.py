"""Losses, labels and batches in forms that torch's users have: torch's own number, or a sentence that says why not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BatchEncoding

from landscape import (
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    average_sharpness,
    losses_at,
    m_sharpness,
    sharpness_curve,
    token_cross_entropy,
    worst_case_sharpness,
)
from landscape.examples import can_take_examples, take_examples
from landscape.surfaces.grids import loss_surface


class Derived(nn.CrossEntropyLoss):
    """Of a user's own, computing what its parent does."""


@pytest.mark.parametrize("kind", [nn.PoissonNLLLoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.HingeEmbeddingLoss])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_whole_numbers_are_targets_of_one_output(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    model, x, counts = nn.Linear(3, 1), torch.randn(6, 3), torch.randint(0, 5, shape)
    expected = kind()(model(x)[:, 0], counts.reshape(6).float())
    assert EmpiricalRisk(model, [(x, counts)], loss=kind()).loss() == pytest.approx(float(expected), rel=1e-5)


def test_whole_numbers_are_targets_of_several_outputs() -> None:
    model, x, y = nn.Linear(3, 2), torch.randn(6, 3), torch.randint(0, 2, (6, 2))
    for loss in (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 3.0])), nn.SoftMarginLoss()):
        risk = EmpiricalRisk(model, [(x[:4], y[:4]), (x[4:], y[4:])], loss=loss)
        assert risk.loss() == pytest.approx(float(loss(model(x), y.float())), rel=1e-5)
    model, y = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()), torch.randint(0, 2, (6,))
    with pytest.raises(ValueError, match=r"BCELoss has weights of shape \(6, 1\), one for each example of a batch"):
        EmpiricalRisk(model, [(x, y)], loss=nn.BCELoss(weight=torch.ones(6, 1)))


@pytest.mark.parametrize("loss", [Derived(), nn.CrossEntropyLoss(), Derived(label_smoothing=0.1)])
def test_labels_that_are_left_out_count_in_no_mean(loss: nn.Module) -> None:
    model, x, y = nn.Linear(3, 5), torch.randn(6, 3), torch.tensor([-100, -100, -100, 1, 2, 3])
    for batches in ([(x, y)], [(x[:4], y[:4]), (x[4:], y[4:])]):
        assert EmpiricalRisk(model, batches, loss=loss).loss() == pytest.approx(float(loss(model(x), y)), rel=1e-5)
    image, wide = nn.Conv2d(3, 5, 1), torch.randn(4, 3, 2, 2)
    places = torch.randint(0, 5, (4, 2, 2))
    places[0, 0], places[1] = -100, -100
    risk = EmpiricalRisk(image, [(wide[:3], places[:3]), (wide[3:], places[3:])], loss=loss)
    assert risk.loss() == pytest.approx(float(loss(image(wide), places)), rel=1e-5)


def test_labels_of_any_whole_type_are_what_they_say() -> None:
    """-100 in uint8 is 156, which is a class."""
    model, x, y = nn.Linear(3, 200), torch.randn(6, 3), torch.tensor([156, 3, 156, 8, 100, 199])
    expected = float(F.cross_entropy(model(x), y))
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        for loss in (None, nn.CrossEntropyLoss()):
            assert EmpiricalRisk(model, [(x, y.to(dtype))], loss=loss).loss() == pytest.approx(expected, rel=1e-5)


def test_labels_of_other_data_are_looked_at_as_well() -> None:
    model, batch = nn.Linear(3, 5), (torch.randn(6, 3), torch.arange(6) % 5)
    wrong = [(torch.randn(2, 3), torch.tensor([1, 5]))]
    with pytest.raises(ValueError, match="labels: expected"):
        EmpiricalRisk(model, [batch]).on(wrong)
    EmpiricalRisk(model, [batch]).on(wrong, check=False)
    EmpiricalRisk(model, [batch], check=False).on(wrong)


class NormInFloat32(nn.Module):
    """As Llama's."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * wide.square().mean(-1, keepdim=True).add(1e-6).rsqrt()).to(x)


def test_digits_that_a_model_loses_are_said() -> None:
    model, batch = (
        nn.Sequential(nn.Linear(3, 4), NormInFloat32(), nn.Linear(4, 2)),
        (torch.randn(6, 3), torch.arange(6) % 2),
    )
    with pytest.warns(
        UserWarning, match=r"a part of it computes in torch.float32.*good to the digits of torch.float32"
    ):
        EmpiricalRisk(model, [batch], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EmpiricalRisk(model, [batch])
        EmpiricalRisk(nn.Linear(3, 2), [batch], dtype=torch.float64)


@pytest.mark.parametrize("length", [5, 7])
def test_torchs_loss_reads_torchs_layout(length: int) -> None:
    model, x, y = nn.Conv1d(3, 5, 1), torch.randn(4, 3, length), torch.randint(0, 5, (4, length))
    y[0, 0] = -100
    risk = EmpiricalRisk(model, [(x[:3], y[:3]), (x[3:], y[3:])], loss=nn.CrossEntropyLoss())
    assert risk.loss() == pytest.approx(float(F.cross_entropy(model(x), y)), rel=1e-5)
    log_softmax = nn.Sequential(model, nn.LogSoftmax(dim=1))
    risk = EmpiricalRisk(log_softmax, [(x, y)], loss=nn.NLLLoss())
    assert risk.loss() == pytest.approx(float(F.nll_loss(log_softmax(x), y)), rel=1e-5)
    with pytest.raises(ValueError, match=r"token_cross_entropy.*or torch.nn.CrossEntropyLoss\(\)"):
        EmpiricalRisk(model, [(x, y)])
    if length == 7:
        with pytest.raises(ValueError, match=r"one a token, shape \(4, 5\), got \(4, 7\); logits \(n, classes, T\)"):
            EmpiricalRisk(model, [(x, y)], loss=token_cross_entropy)
    with pytest.raises(ValueError, match=r"one class index a place, shape \(4, 2, 2\)"):
        EmpiricalRisk(nn.Conv2d(3, 5, 1), [(torch.randn(4, 3, 2, 2), torch.zeros(4, 1, 2, 2, dtype=torch.long))])


@pytest.mark.parametrize("labels", [[0, 1, 2], (0, 1, 2), None, "abc"])
def test_labels_that_are_no_tensor_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match="labels: expected a tensor, got a"):
        EmpiricalRisk(nn.Linear(3, 5), [(torch.randn(3, 3), labels)])


@pytest.mark.parametrize("loss", [nn.GaussianNLLLoss(), nn.TripletMarginLoss(), nn.MultiLabelMarginLoss()])
def test_losses_of_other_arguments_say_what_to_write(loss: nn.Module) -> None:
    batch = (torch.randn(6, 3), torch.randint(0, 3, (6,)))
    with pytest.raises(ValueError, match=r"loss: \w+ fails on the outputs and targets of the first batch: .*write a"):
        EmpiricalRisk(nn.Linear(3, 4), [batch], loss=loss)


class Reading(nn.Module):
    """Reads its inputs as their kind allows."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(3, 2)

    def forward(self, x: Any) -> Tensor:
        assert type(x) is self.kind, type(x)
        parts = list(x.values()) if isinstance(x, BatchEncoding | dict) else x
        return self.linear(torch.stack(list(parts)).mean(dim=0))


@pytest.mark.parametrize("kind", [list, tuple, dict, BatchEncoding])
def test_inputs_reach_the_model_as_the_kind_that_they_are(kind: type) -> None:
    parts, y = [torch.randn(4, 3), torch.randn(4, 3)], torch.tensor([0, 1, 1, 0])
    inputs = kind(dict(zip("ab", parts, strict=True))) if kind in (dict, BatchEncoding) else kind(parts)
    model = Reading(kind)
    risk = EmpiricalRisk(model, [{"x": inputs, "labels": y}])
    expected = float(F.cross_entropy(model.linear(torch.stack(parts).mean(dim=0)), y))
    assert risk.loss() == pytest.approx(expected, rel=1e-5)
    (single,) = take_examples(risk, torch.tensor([2]))
    assert type(single["x"]) is kind and math.isfinite(risk.on([single]).loss())
    assert math.isfinite(m_sharpness(risk, 0.1, m=1).rise)


class Shifted(nn.Module):
    """The loss of an example depends on those beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        return z - z.mean(dim=0, keepdim=True) + z.mean()


def test_examples_that_depend_on_each_other_are_seen_behind_a_single_one() -> None:
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    for parts in ((slice(0, 1), slice(1, 6)), (slice(1, 6), slice(0, 1))):
        risk = EmpiricalRisk(Shifted(), [(x[part], y[part]) for part in parts])
        assert not can_take_examples(risk)
        with pytest.raises(ValueError, match="whose losses do not depend on the rows beside them"):
            m_sharpness(risk, 0.1, m=2)


def test_a_last_batch_of_one_beside_what_all_share() -> None:
    class Prototypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 4)

        def forward(self, x: Tensor, protos: Tensor) -> Tensor:
            return self.linear(x) @ protos.T

    x, y, protos, model = torch.randn(6, 5), torch.randint(0, 3, (6,)), torch.randn(3, 4), Prototypes()
    batches = [{"x": x[part], "protos": protos, "labels": y[part]} for part in (slice(0, 5), slice(5, 6))]
    expected = float(F.cross_entropy(model(x, protos), y))
    assert EmpiricalRisk(model, batches).loss() == pytest.approx(expected, rel=1e-5)


def test_what_is_not_finite_is_said_where_it_comes_from() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    with pytest.raises(ValueError, match="the loss of batch 1 is NaN, and some of its inputs or labels are not finite"):
        EmpiricalRisk(net, [(x, y), (x * math.inf, y)])
    endless = EmpiricalRisk(net, [(x, y), (x * math.inf, y)], check=False)
    with pytest.raises(FloatingPointError, match="not a number"):
        m_sharpness(endless, 0.1, m=2)
    poisson = EmpiricalRisk(nn.Linear(3, 1), [(10 + torch.rand(5, 3), torch.rand(5, 1))], loss=nn.PoissonNLLLoss())
    far = average_sharpness(poisson, 30.0)
    assert far.rise == far.stderr == math.inf


def test_models_that_fail_on_a_batch_name_it() -> None:
    class Needs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, **inputs: Tensor) -> Tensor:
            return self.linear(inputs["features"])

    x, y = torch.randn(4, 3), torch.randint(0, 2, (4,))
    with pytest.raises(ValueError, match="the model fails on the first batch: 'features'"):
        EmpiricalRisk(Needs(), [{"x": x, "labels": y}])
    with pytest.raises(ValueError, match="takes the first and fails on batch 1: mat1 and mat2"):
        EmpiricalRisk(nn.Linear(3, 2), [(x, y), (x[:, :2], y)])


def test_a_type_that_a_model_does_not_run_in_is_named() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.float())

    batch = (torch.randn(4, 3), torch.randint(0, 2, (4,)))
    with pytest.raises(ValueError, match=r"Does it run in torch.float64\? It is in torch.float32; try without dtype"):
        EmpiricalRisk(Single(), [batch], dtype=torch.float64)


def test_models_loaded_in_inference_mode_have_gradients() -> None:
    with torch.inference_mode():
        frozen = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    plain.load_state_dict({name: weight.clone() for name, weight in frozen.state_dict().items()})
    batch = (torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]))
    gradients = [EmpiricalRisk(model, [batch], params=["0.weight"]).gradient() for model in (frozen, plain)]
    torch.testing.assert_close(*gradients)


def black_corner() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A fresh network with biases of 0 on images with black pixels: many units lie exactly at ReLU's kink."""
    images = torch.rand(20, 1, 6, 6)
    images[:, :, :3] = 0
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    for layer in (model[0], model[3]):
        nn.init.zeros_(layer.bias)
    return model, [(images, torch.randint(0, 3, (20,)))]


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
def test_a_kink_is_no_wrong_derivative(kind: type) -> None:
    model, batches = black_corner()
    kind(EmpiricalRisk(model, batches))
    absolute = EmpiricalRisk(nn.Linear(3, 1), [(torch.zeros(4, 3), torch.zeros(4, 1))], loss=nn.L1Loss())
    with torch.no_grad():
        absolute.model.bias.zero_()
    kind(EmpiricalRisk(absolute.model, absolute.batches, loss=nn.L1Loss()))


def risk() -> EmpiricalRisk:
    return EmpiricalRisk(nn.Linear(3, 2), [(torch.randn(4, 3), torch.randint(0, 2, (4,)))])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: losses_at(r, [r.theta, r.theta]), "points: expected a tensor of floating type, got a list"),
        (lambda r: average_sharpness(r, 0.1, num_samples=2.5), "num_samples: expected a count of at least 2, got 2.5"),
        (lambda r: average_sharpness(r, 0.1, subspace=[1, 2]), "subspace: expected an orthonormal basis"),
        (lambda r: worst_case_sharpness(r, 0.1, tol="a"), "tol: expected a number, got 'a'"),
        (lambda r: worst_case_sharpness(r, 0.1, tol=math.nan), "tol: expected a share of the rise"),
        (lambda r: worst_case_sharpness(r, 0.1, seed="x"), "seed: expected a whole number, got 'x'"),
        (lambda r: sharpness_curve(r, np.array([0.1, 0.2])), r"rhos: .* got a ndarray; pass rhos.tolist\(\)"),
        (lambda r: HessianOperator(r, theta=[0.1] * 8), "theta: expected a tensor of shape"),
        (lambda r: loss_surface(r, r.theta, r.theta, [0.0], [0, 1], partial=[[1, 2]]), "partial: expected a tensor"),
        (lambda r: loss_surface(r, r.theta, r.theta, "ab", [0, 1]), "alphas: expected a non-empty list of finite"),
        (lambda r: loss_surface(r, r.theta, r.theta, [0.0], [0, 1.0]).plot(), "has no contours; see to_frame"),
    ],
)  # fmt: skip
def test_arguments_of_another_kind_are_told_apart(call: Callable[[EmpiricalRisk], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(risk())


def test_numbers_of_numpy_are_numbers() -> None:
    one = risk()
    assert average_sharpness(one, np.float32(0.1)).rise == pytest.approx(average_sharpness(one, 0.1).rise, rel=1e-4)
    assert m_sharpness(one, np.int64(1), m=2).rise == m_sharpness(one, 1.0, m=2).rise


def test_a_compilers_refusal_is_answered_by_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile` with some backends refuses vmap by an AssertionError."""
    one = risk()
    expected = losses_at(one, one.theta[None].repeat(4, 1))

    def refuses(*_: object, **__: object) -> None:
        raise AssertionError("no vmap here")

    monkeypatch.setattr("landscape.surfaces.points.vmap", refuses)
    torch.testing.assert_close(losses_at(one, one.theta[None].repeat(4, 1)), expected)
