"""Losses and batches as users write them: taken for what they mean, or refused."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from landscape import (
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    binary_cross_entropy,
    cross_entropy_of,
    lanczos,
    m_sharpness,
    mse,
)

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(10, 3, generator=DRAW).double()
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
VALUES = torch.randn(10, generator=DRAW).double()


def linear(outputs: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(3, outputs).double()


def risk_of(loss: Any = None, **options: Any) -> EmpiricalRisk:
    return EmpiricalRisk(linear(), [(X, Y)], loss, **options)


class Focal(nn.CrossEntropyLoss):
    """Means over the batch, whatever the reduction."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, targets, reduction="none")
        return ((1 - (-losses).exp()) ** 2 * losses).mean()


class Doubled(nn.MSELoss):
    """Keeps to the reduction."""

    def forward(self, values: Tensor, targets: Tensor) -> Tensor:
        return 2 * super().forward(values, targets)


def test_a_class_derived_from_one_of_torchs_is_its_own() -> None:
    model = linear(1)
    targets = VALUES[:, None]
    assert EmpiricalRisk(model, [(X, targets)], Doubled()).loss() == pytest.approx(float(Doubled()(model(X), targets)))
    with pytest.raises(
        ValueError, match=r"expected Focal with reduction='none' to give a loss for each of 10 examples"
    ):
        EmpiricalRisk(linear(), [(X, Y)], Focal())


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), nn.MSELoss()])
@pytest.mark.parametrize("column", [True, False])
def test_values_meet_their_own_targets_whatever_the_batches(loss: nn.Module, column: bool) -> None:
    model, targets = linear(1), VALUES[:, None] if column else VALUES
    expected = float(loss(model(X)[:, 0], VALUES))
    for batches in ([(X, targets)], list(zip(X.split(3), targets.split(3), strict=True))):
        assert EmpiricalRisk(model, batches, loss).loss() == pytest.approx(expected)


def test_a_likelihoods_left_out_labels_are_left_out() -> None:
    model = nn.Sequential(linear(), nn.LogSoftmax(dim=1))
    labels = Y.clone()
    labels[:3] = -100
    expected = float(nn.NLLLoss()(model(X), labels))
    batches = list(zip(X.split(4), labels.split(4), strict=True))
    assert EmpiricalRisk(model, batches, nn.NLLLoss()).loss() == pytest.approx(expected)
    with pytest.raises(ValueError, match="expected ignore_index=-100, got 0"):
        EmpiricalRisk(model, [(X, Y)], nn.NLLLoss(ignore_index=0))


def test_a_class_of_weight_0_has_no_part() -> None:
    weights, model = torch.tensor([0.0, 1.0, 2.0]).double(), linear()
    expected = float(F.cross_entropy(model(X), Y, weights))
    for batches in ([(X, Y)], [(X[:1], Y[:1]), (X[1:], Y[1:])]):  # the first batch has that class alone
        risk = EmpiricalRisk(model, batches, cross_entropy_of(weights))
        assert risk.loss() == pytest.approx(expected)
        assert bool(risk.gradient().isfinite().all())
    with pytest.raises(ValueError, match="class_weights: a smoothed label of a class of weight 0"):
        cross_entropy_of(weights, label_smoothing=0.1)
    with pytest.raises(ValueError, match="class_weights: expected finite weights of at least 0"):
        cross_entropy_of(-weights)


class Weighing:
    """A loss with weights of the user's."""

    def __init__(self, weights: Any) -> None:
        self._weights = weights

    def __call__(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs, batch[1], reduction="none")

    def weights(self, batch: Any) -> Any:
        return self._weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(10, 1), r"loss.weights\(batch\) of shape \(10,\), one an example, got shape \(10, 1\)"),
        (torch.full((10,), -1.0), "of at least 0, got others in batch 0"),
        (torch.full((10,), torch.nan), "finite loss.weights"),
        ([1.0] * 10, "got list"),
    ],
)
def test_weights_that_are_none_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmpiricalRisk(linear(), [(X, Y)], Weighing(weights))


def test_an_attribute_called_weights_is_no_function() -> None:
    loss = Weighing(None)
    loss.weights = torch.ones(3)  # type: ignore[assignment, method-assign]
    assert EmpiricalRisk(linear(), [(X, Y)], loss).loss() == pytest.approx(float(F.cross_entropy(linear()(X), Y)))


def test_the_models_own_loss_is_seen_through_peft() -> None:
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, num_labels=4, problem_type="multi_label_classification",
    )  # fmt: skip
    model = get_peft_model(BertForSequenceClassification(config), LoraConfig(r=2, target_modules=["query"])).eval()
    labels = F.one_hot(torch.arange(6) % 4, 4).float()
    batch = {"input_ids": torch.randint(1, 20, (6, 5), generator=DRAW), "labels": labels}
    with pytest.raises(ValueError, match="but the model's own loss is"):
        EmpiricalRisk(model, [batch])
    with torch.no_grad():
        own = float(model(**batch).loss)
    assert EmpiricalRisk(model, [batch], binary_cross_entropy).loss() == pytest.approx(own, rel=1e-5)


def test_targets_lie_as_the_outputs_do() -> None:
    class Reshaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).view(-1, 2, 3)

    targets = torch.randn(10, 2, 3, generator=DRAW).double()
    expected = float(F.mse_loss(Reshaped()(X), targets))
    for same in (targets, targets.flatten(1), targets[:, None]):
        assert EmpiricalRisk(Reshaped(), [(X, same)], mse).loss() == pytest.approx(expected)
    with pytest.raises(ValueError, match="expected a target for each of the outputs"):
        EmpiricalRisk(Reshaped(), [(X, targets.transpose(1, 2))], mse)


def test_several_labels_are_probabilities() -> None:
    labels = torch.zeros(10, 3).double()
    labels[4, 1] = -100
    with pytest.raises(ValueError, match="expected 0, 1 or probabilities between them, got -100 in batch 1"):
        EmpiricalRisk(linear(), [(X[:3], labels[:3]), (X[3:], labels[3:])], binary_cross_entropy)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_type(dtype: torch.dtype) -> None:
    expected = float(F.cross_entropy(linear()(X), Y))
    assert EmpiricalRisk(linear(), [(X, Y.to(dtype))]).loss() == pytest.approx(expected)


def test_a_label_a_pixel() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(1, 4, 3, padding=1).double()
    images = torch.randn(5, 1, 6, 6, generator=DRAW).double()
    labels = torch.randint(0, 4, (5, 6, 6), generator=DRAW)
    labels[0, :3] = -100
    risk = EmpiricalRisk(model, list(zip(images.split(2), labels.split(2), strict=True)))
    assert risk.loss() == pytest.approx(float(F.cross_entropy(model(images), labels)))
    with pytest.raises(ValueError, match="expected class indices from 0 to 3 or -100, got 4"):
        EmpiricalRisk(model, [(images, labels.clamp(min=0) + 4)])


def test_a_loss_of_more_than_the_logits_has_no_gauss_newton_matrix() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.router = linear(), linear(2)

        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(logits=self.inner(x), extra=self.router(x))

    def of_logits(outputs: Any, batch: Any) -> Tensor:
        return F.cross_entropy(outputs.logits, batch[1], reduction="none")

    def of_both(outputs: Any, batch: Any) -> Tensor:
        return of_logits(outputs, batch) + outputs.extra.square().sum(dim=1)

    GGNOperator(EmpiricalRisk(Routed(), [(X, Y)], of_logits, "inner"))
    with pytest.raises(ValueError, match="loss: it reads more of the model's outputs than the logits"):
        GGNOperator(EmpiricalRisk(Routed(), [(X, Y)], of_both))
    assert HessianOperator(EmpiricalRisk(Routed(), [(X, Y)], of_both)).shape == (20, 20)


def test_a_buffer_that_is_filled_again_is_refused() -> None:
    def filling() -> Iterator[Any]:
        buffer = torch.empty(5, 3).double()
        for part in X.split(5):
            yield buffer.copy_(part), Y[:5]

    with pytest.raises(ValueError, match="batches: batch 0 was overwritten while later ones were read"):
        EmpiricalRisk(linear(), filling())
    same = (X, Y)
    assert EmpiricalRisk(linear(), iter([same, same])).loss() == pytest.approx(EmpiricalRisk(linear(), [same]).loss())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: risk_of(functools.partial(F.cross_entropy, label_smoothing=0.1)), "takes a mean"),
        (lambda: risk_of(lambda outputs, batch: float(outputs.sum())), "a tensor of losses, one an example, got"),
        (lambda: risk_of(lambda outputs, batch: F.cross_entropy(outputs, batch[1])), "expected one loss per"),
        (lambda: EmpiricalRisk(nn.Sequential(linear(1), nn.Flatten(0)), [(X, Y % 2)]), "logits of several classes"),
        (lambda: risk_of(params=linear().parameters()), "a predicate on names, got Parameters"),
        (lambda: risk_of(params=3), "a predicate on names, got ints"),
        (lambda: risk_of(dtype=torch.bfloat16), "expected torch.float32 or torch.float64"),
        (lambda: EmpiricalRisk(linear().to(torch.complex128), [(X, Y)]), "weight is complex"),
        (lambda: EmpiricalRisk(linear(), [(X[:5], Y[:5]), (X[5:] * torch.nan, Y[5:])]), "the loss of batch 1 is NaN"),
    ],
)  # fmt: skip
def test_wrong_calls_are_told_what_is_right(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_example_without_labels_has_no_rise_of_its_own() -> None:
    labels = Y.clone()
    labels[4] = -100
    risk = EmpiricalRisk(linear(), [(X, labels)])
    found = m_sharpness(risk, 0.1, m=1)
    assert len(found.rises) == 9
    kept = torch.arange(10) != 4
    whole = m_sharpness(EmpiricalRisk(linear(), [(X[kept], Y[kept])]), 0.1, m=1)
    assert found.rise == pytest.approx(whole.rise)


def test_a_number_of_numpys_is_a_number() -> None:
    assert lanczos(HessianOperator(EmpiricalRisk(linear(), [(X, Y)])), np.int64(2)).eigenvalues.shape == (2,)
