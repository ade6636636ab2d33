"""Layers and batches that torch treats in ways of their own: derivatives are the loss's, or the model is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from landscape import (
    EmpiricalFisherOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    m_sharpness,
    worst_case_sharpness,
)
from landscape.examples import can_take_examples

TOKENS, LABELS = torch.randint(0, 7, (8, 5), generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2


class Tokens(nn.Module):
    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table, self.head = table, nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.table(input=tokens))
        return self.head(hidden.mean(1) if hidden.ndim == 3 else hidden)


def central_differences(risk: EmpiricalRisk) -> Tensor:
    theta, step = risk.theta, 1e-5
    rises = [
        risk.loss(theta + step * unit) - risk.loss(theta - step * unit) for unit in torch.eye(len(theta)).to(theta)
    ]
    return torch.tensor(rises, dtype=torch.float64) / (2 * step)


@pytest.mark.parametrize("options", [{"sparse": True}, {"padding_idx": 0}, {"scale_grad_by_freq": True}])
def test_tables_have_the_derivatives_of_the_loss(options: dict) -> None:
    model = Tokens(nn.Embedding(7, 4, **options)).double()
    risk = EmpiricalRisk(model, [(TOKENS, LABELS)])
    torch.testing.assert_close(risk.gradient(), central_differences(risk), rtol=1e-7, atol=1e-9)
    plain = Tokens(nn.Embedding(7, 4)).double()
    plain.load_state_dict(model.state_dict())
    same = EmpiricalRisk(plain, [(TOKENS, LABELS)])
    torch.testing.assert_close(HessianOperator(risk).to_dense(), HessianOperator(same).to_dense())
    for name, value in options.items():
        assert getattr(model.table, name) == value
    assert "forward" not in vars(model.table)


def test_bags_have_first_derivatives_and_a_clear_word_about_second_ones() -> None:
    risk = EmpiricalRisk(Tokens(nn.EmbeddingBag(7, 4, sparse=True)).double(), [(TOKENS, LABELS)])
    torch.testing.assert_close(risk.gradient(), central_differences(risk), rtol=1e-7, atol=1e-9)
    with pytest.raises(ValueError, match="cannot differentiate a part of the model twice"):
        HessianOperator(risk).to_dense()
    head = EmpiricalRisk(risk.model, [(TOKENS, LABELS)], params="head")
    assert HessianOperator(head).to_dense().shape == (10, 10)


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][-1])


@pytest.mark.parametrize("times", [5, 8])
def test_time_major_inputs_are_counted_by_their_labels_and_not_cut(times: int) -> None:
    """With as many times as examples shapes tell nothing: two examples are tried alone."""
    x = torch.randn(times, 8, 3, dtype=torch.float64)
    risk = EmpiricalRisk(TimeFirst().double(), [(x, LABELS)])
    assert risk.num_examples == 8
    expected = nn.functional.cross_entropy(risk.model(x), LABELS).item()
    assert risk.loss() == pytest.approx(expected)
    assert not can_take_examples(risk)
    assert worst_case_sharpness(risk, 0.1, max_passes=50).rise > 0
    message = "batches: expected 8 rows" if times == 5 else "other losses alone"
    with pytest.raises(ValueError, match=message):
        m_sharpness(risk, 0.1, m=2)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(7, 4), nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, temperature: Tensor, position_ids: Tensor, input_ids: Tensor) -> Tensor:
        return temperature * self.head(torch.tanh(self.words(input_ids) + self.places(position_ids)).mean(1))


def test_tensors_that_are_one_for_all_examples_are_not_counted_and_not_cut() -> None:
    model = Positions().double()
    shared = {"temperature": torch.tensor(2.0).double(), "position_ids": torch.arange(5)[None]}
    risk = EmpiricalRisk(model, [shared | {"input_ids": TOKENS, "labels": LABELS}])
    single = [
        EmpiricalRisk(model, [shared | {"input_ids": TOKENS[i : i + 1], "labels": LABELS[i : i + 1]}]) for i in range(8)
    ]
    assert risk.batch_sizes == (8,) and not can_take_examples(risk)
    assert risk.loss() == pytest.approx(sum(one.loss() for one in single) / 8)
    assert worst_case_sharpness(risk, 0.1, max_passes=50).rise > 0
    with pytest.raises(ValueError, match="batches: expected 8 rows"):
        m_sharpness(risk, 0.1, m=1)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.jit.script, lambda m: torch.jit.trace(m, torch.randn(8, 3))])
def test_wrapped_and_scripted_models_are_refused_with_the_way_out(wrap) -> None:
    with pytest.raises(ValueError, match=r"model: expected a .*; pass "):
        EmpiricalRisk(wrap(nn.Sequential(nn.Linear(3, 2))), [(torch.randn(8, 3), LABELS)])


def test_a_penalty_is_part_of_every_entry_point() -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(3, 2).double(), [(torch.randn(8, 3).double(), LABELS)]
    plain, penalised = EmpiricalRisk(model, data), EmpiricalRisk(model, data, l2=0.1)
    theta = plain.theta
    square = float(theta.square().sum())
    assert penalised.loss() == pytest.approx(plain.loss() + 0.1 * square)
    torch.testing.assert_close(penalised.per_example_losses(), plain.per_example_losses() + 0.1 * square)
    torch.testing.assert_close(penalised.gradient(), plain.gradient() + 0.2 * theta)
    for kind in (HessianOperator, GGNOperator):
        difference = kind(penalised).to_dense() - kind(plain).to_dense()
        torch.testing.assert_close(difference, 0.2 * torch.eye(8, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    slopes = [penalised.on([(data[0][0][i : i + 1], LABELS[i : i + 1])]).gradient() for i in range(8)]
    fisher = torch.stack(slopes).T @ torch.stack(slopes) / 8
    torch.testing.assert_close(EmpiricalFisherOperator(penalised).to_dense(), fisher)
    epsilon = worst_case_sharpness(penalised, 0.1, max_passes=50)
    assert epsilon.rise == pytest.approx(penalised.loss(theta + epsilon.epsilon) - penalised.loss())
    with pytest.raises(ValueError, match="l2: expected a finite number"):
        EmpiricalRisk(model, data, l2=float("nan"))
