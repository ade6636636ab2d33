"""What the mean loss accepts, how it weighs, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from landscape import (
    EmpiricalFisherOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    next_token_cross_entropy,
    token_cross_entropy,
)

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
OPERATORS = [HessianOperator, GGNOperator, EmpiricalFisherOperator]


def tokens(lengths: list[int], padded_to: int, *, labelled: bool) -> dict[str, Tensor]:
    """Random sequences with their padding masked out, and labels of -100 there."""
    ids = torch.randint(0, 20, (len(lengths), padded_to), generator=torch.Generator().manual_seed(sum(lengths)))
    mask = (torch.arange(padded_to) < torch.tensor(lengths)[:, None]).long()
    labels = ids.where(mask.bool(), -100) if labelled else torch.tensor([length % 2 for length in lengths])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def causal_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=12)).double().eval()


def test_causal_language_models_average_over_tokens() -> None:
    model = causal_model()
    batches = [tokens([5, 3], 5, labelled=True), tokens([8], 8, labelled=True)]
    risk = EmpiricalRisk(model, batches, loss=next_token_cross_entropy)
    summed, count = 0.0, 0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        for row, labels in zip(logits, batch["labels"], strict=True):
            for position in range(len(labels) - 1):
                if labels[position + 1] != -100:
                    summed += float(F.cross_entropy(row[position], labels[position + 1]).detach())
                    count += 1
    assert count == 4 + 2 + 7
    assert risk.loss() == pytest.approx(summed / count, rel=1e-9)
    assert risk.loss_and_gradient()[0] == pytest.approx(summed / count, rel=1e-9)
    together = EmpiricalRisk(model, [tokens([8], 8, labelled=True)], loss=next_token_cross_entropy)
    reported = float(model(**together.batches[0]).loss.detach())  # computed in float32
    assert together.loss() == pytest.approx(reported, rel=1e-6)


@pytest.mark.parametrize("kind", OPERATORS)
def test_padding_does_not_matter_to_curvature(kind: type) -> None:
    short, long = ([tokens([4, 4], width, labelled=True)] for width in (4, 9))
    long[0]["input_ids"][:, :4] = short[0]["input_ids"]
    long[0]["labels"][:, :4] = short[0]["labels"]
    operators = [kind(EmpiricalRisk(causal_model(), data, loss=next_token_cross_entropy)) for data in (short, long)]
    vector = torch.randn(operators[0].shape[0], dtype=torch.float64)
    # transformers' masks are finite: padded positions keep a share of the attention around exp(-1e38) = 0
    torch.testing.assert_close(operators[0].matvec(vector), operators[1].matvec(vector), rtol=1e-8, atol=1e-10)


def test_token_classification_and_sequences() -> None:
    torch.manual_seed(1)
    model = BertForTokenClassification(BertConfig(**SMALL, num_labels=20)).eval()
    batch = tokens([4, 2, 6], 6, labelled=True)
    risk = EmpiricalRisk(model, [batch], loss=token_cross_entropy)
    assert risk.loss() == pytest.approx(float(model(**batch).loss), rel=1e-5)
    with pytest.raises(ValueError, match="token_cross_entropy"):
        EmpiricalRisk(model, [batch])
    classifier = BertForSequenceClassification(BertConfig(**SMALL)).eval()
    batch = tokens([4, 2, 6], 6, labelled=False)
    assert EmpiricalRisk(classifier, [batch]).loss() == pytest.approx(float(classifier(**batch).loss), rel=1e-5)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    paired = EmpiricalRisk(classifier, [(inputs, batch["labels"])])
    assert paired.loss() == EmpiricalRisk(classifier, [batch]).loss()


def test_labels_of_minus_100_leave_examples_out() -> None:
    model, x = nn.Linear(3, 4), torch.randn(5, 3)
    y = torch.tensor([0, -100, 3, -100, 1])
    kept = y != -100
    masked, without = EmpiricalRisk(model, [(x, y)]), EmpiricalRisk(model, [(x[kept], y[kept])])
    assert masked.loss() == pytest.approx(without.loss(), rel=1e-6)
    torch.testing.assert_close(HessianOperator(masked).to_dense(), HessianOperator(without).to_dense())
    with pytest.raises(ValueError, match="every label is -100"):
        EmpiricalRisk(model, [(x, torch.full((5,), -100))])


def test_class_probabilities_are_targets_too() -> None:
    model, x = nn.Linear(3, 4), torch.randn(5, 3)
    y = torch.rand(5, 4).softmax(dim=1)
    assert EmpiricalRisk(model, [(x, y)]).loss() == pytest.approx(float(F.cross_entropy(model(x), y)), rel=1e-6)


def test_loaders_shuffled_or_ragged_are_read_once() -> None:
    data = TensorDataset(torch.randn(10, 3), torch.randint(0, 2, (10,)))
    model = nn.Linear(3, 2)
    state = torch.get_rng_state()
    ordered = EmpiricalRisk(model, DataLoader(data, batch_size=4))
    shuffled = EmpiricalRisk(model, DataLoader(data, batch_size=4, shuffle=True))
    assert torch.equal(state, torch.get_rng_state())
    assert shuffled.loss() == pytest.approx(ordered.loss(), rel=1e-6)
    torch.testing.assert_close(shuffled.gradient(), ordered.gradient())
    with pytest.raises(ValueError, match="drop_last=True and would leave out 2 of 10"):
        EmpiricalRisk(model, DataLoader(data, batch_size=4, drop_last=True))
    assert EmpiricalRisk(model, DataLoader(data, batch_size=5, drop_last=True)).num_examples == 10


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), 0.5, training=True)


def test_a_random_model_is_refused_and_the_generator_restored() -> None:
    batches, noisy = [(torch.randn(6, 3), torch.zeros(6, dtype=torch.long))], Noisy()
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="draws random numbers in eval mode"):
        EmpiricalRisk(noisy, batches)
    assert torch.equal(state, torch.get_rng_state())
    EmpiricalRisk(noisy, batches, check=False).loss()


def test_batch_statistics_stay_put() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    risk = EmpiricalRisk(model, [(torch.randn(8, 3), torch.randint(0, 2, (8,)))])
    risk.gradient()
    for kind in OPERATORS:
        kind(risk).matvec(torch.ones(risk.num_params))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_tied_weights_count_once_under_either_name() -> None:
    model = causal_model()
    risk = EmpiricalRisk(model, [tokens([4], 4, labelled=True)], loss=next_token_cross_entropy)
    assert risk.num_params == sum(parameter.numel() for parameter in model.parameters())
    assert risk.select(["lm_head.weight"]).layout.names == ("transformer.wte.weight",)
    assert risk.select(["lm_head.weight", "transformer.wte.weight"]).num_params == 160
    for params in (r"^lm_head", lambda name: name == "lm_head.weight"):
        assert risk.select(params).layout.names == ("transformer.wte.weight",)
    with pytest.raises(ValueError, match="no regular expression"):
        risk.select("*proj")
