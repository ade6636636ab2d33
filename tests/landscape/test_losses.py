"""The ready-made losses against torch's, the models' own losses, and labels that a loss would misread."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForSequenceClassification

from landscape import (
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    binary_cross_entropy,
    cross_entropy,
    cross_entropy_of,
    mse,
    token_cross_entropy,
)
from tests.landscape.test_risk import SMALL, tokens


def classifier(**options: object) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SMALL, **options)).double().eval()


def labelled(labels: Tensor) -> dict[str, Tensor]:
    return tokens([4, 2, 6], 6, labelled=False) | {"labels": labels}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_class_weights_and_smoothing_average_as_torch_does(smoothing: float, weighted: bool) -> None:
    torch.manual_seed(1)
    model, x, y = nn.Linear(3, 4).double(), torch.randn(10, 3).double(), torch.randint(0, 4, (10,))
    y[3] = -100
    class_weights = torch.tensor([0.5, 1.0, 2.0, 4.0]).double() if weighted else None
    loss = cross_entropy_of(class_weights, label_smoothing=smoothing)
    risk = EmpiricalRisk(model, [(x[:4], y[:4]), (x[4:], y[4:])], loss=loss)
    exact = F.cross_entropy(model(x), y, class_weights, label_smoothing=smoothing)
    assert risk.loss() == pytest.approx(float(exact), rel=1e-12)
    gradients = torch.autograd.grad(exact, list(model.parameters()))
    torch.testing.assert_close(risk.gradient(), torch.cat([g.flatten() for g in gradients]))
    torch.testing.assert_close(HessianOperator(risk).to_dense(), GGNOperator(risk).to_dense())


def test_class_weights_of_tokens() -> None:
    torch.manual_seed(2)
    logits, labels = torch.randn(3, 5, 4).double(), torch.randint(0, 4, (3, 5))
    labels[0, 2:], labels[2] = -100, -100
    loss = cross_entropy_of(torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), tokens="aligned")
    losses, weights = loss(logits, (None, labels)), loss.weights((None, labels))
    exact = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), loss.class_weights)
    assert float((losses * weights).sum() / weights.sum()) == pytest.approx(float(exact), rel=1e-12)
    assert losses[2] == 0 and weights[2] == 0


def test_values_and_binary_labels() -> None:
    torch.manual_seed(3)
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    model = nn.Linear(3, 2).double()
    assert EmpiricalRisk(model, [(x, y)], mse).loss() == pytest.approx(float(F.mse_loss(model(x), y)), rel=1e-12)
    one, several = nn.Linear(3, 1).double(), (torch.rand(7, 2) < 0.5).double()
    exact = float(F.binary_cross_entropy_with_logits(model(x), several))
    assert EmpiricalRisk(model, [(x, several)], binary_cross_entropy).loss() == pytest.approx(exact, rel=1e-12)
    for labels in (several[:, :1], several[:, 0], several[:, 0].long()):  # a column, a vector, integers
        exact = float(F.binary_cross_entropy_with_logits(one(x)[:, 0], several[:, 0]))
        assert EmpiricalRisk(one, [(x, labels)], binary_cross_entropy).loss() == pytest.approx(exact, rel=1e-12)
    with pytest.raises(ValueError, match="expected a target for each"):
        EmpiricalRisk(model, [(x, y[:, :1])], mse)


MULTI_LABEL = (torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) < 0.5).double()


@pytest.mark.parametrize(
    ("options", "labels", "loss"),
    [
        ({"num_labels": 4, "problem_type": "multi_label_classification"}, MULTI_LABEL, binary_cross_entropy),
        ({"num_labels": 1}, torch.randn(3, 1).double(), mse),
        ({"num_labels": 1}, torch.randn(3).double(), mse),
        ({"num_labels": 4}, torch.tensor([0, 3, 1]), cross_entropy),
        ({"num_labels": 4}, torch.tensor([0, 3, 1]), None),
    ],
    ids=["several labels", "regression, a column", "regression, a vector", "classes", "classes by default"],
)
def test_a_loss_is_the_models_own(options: dict, labels: Tensor, loss: object) -> None:
    model, batch = classifier(**options), labelled(labels)
    risk = EmpiricalRisk(model, [batch], loss=loss)  # type: ignore[arg-type]
    assert risk.loss() == pytest.approx(float(model(**batch).loss.detach()), rel=1e-9)
    assert risk.loss_and_gradient()[0] == pytest.approx(risk.loss(), rel=1e-12)


@pytest.mark.parametrize("labels", [MULTI_LABEL, MULTI_LABEL / MULTI_LABEL.sum(dim=1, keepdim=True).clamp(min=1)])
def test_a_default_that_is_not_the_models_own_loss_is_refused(labels: Tensor) -> None:
    """Also where the labels could be class probabilities."""
    model = classifier(num_labels=4, problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="binary_cross_entropy"):
        EmpiricalRisk(model, [labelled(labels)])


def test_a_decoder_fed_by_the_labels_is_refused() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 20}
    model = BartForConditionalGeneration(BartConfig(**sizes, **heads, forced_eos_token_id=None)).double().eval()
    batch = tokens([6, 6], 6, labelled=True)
    with pytest.raises(ValueError, match="decoder_input_ids"):
        EmpiricalRisk(model, [batch], loss=token_cross_entropy)
    whole = batch | {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(batch["labels"])}
    risk = EmpiricalRisk(model, [whole], loss=token_cross_entropy)
    assert risk.loss() == pytest.approx(float(model(**batch).loss.detach()), rel=1e-9)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.rand(6, 1).double(), "floating type"),
        (torch.rand(6).double(), "floating type"),
        (torch.tensor([[1.0, 1.0, 0.0]] * 6).double(), "sums differ from 1 by up to 1"),
        (torch.zeros(6, 1).long(), "one class index an example"),
        (torch.tensor([0, 1, 2, 3, 0, 1]), "from 0 to 2 or -100, got 3 in batch 0"),
        (torch.tensor([0, 1, 2, -1, 0, 1]), "got -1"),
    ],
)
def test_labels_that_would_be_misread_are_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmpiricalRisk(nn.Linear(3, 3).double(), [(torch.randn(6, 3).double(), labels)])
    late = [(torch.randn(2, 3).double(), torch.tensor([0, 1])), (torch.randn(6, 3).double(), labels)]
    with pytest.raises(ValueError):
        EmpiricalRisk(nn.Linear(3, 3).double(), late).loss()


def test_one_logit_with_labels_of_floating_type_is_no_class() -> None:
    with pytest.raises(ValueError, match="binary_cross_entropy"):
        EmpiricalRisk(nn.Linear(3, 1), [(torch.randn(6, 3), torch.ones(6, 1))])


def test_a_loss_that_reads_the_weights_is_refused() -> None:
    model, x, y = nn.Linear(3, 2).double(), torch.randn(8, 3).double(), torch.randint(0, 2, (8,))

    def penalised(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        penalty = 0.1 * sum(parameter.square().sum() for parameter in model.parameters())
        return F.cross_entropy(outputs, batch[1], reduction="none") + penalty

    for dtype in (None, torch.float32):
        with pytest.raises(ValueError, match="reads the model's own parameters"):
            EmpiricalRisk(model, [(x, y)], penalised, dtype=dtype)
