"""Models that write to themselves, run twice, or leave weights unused: measured rightly and untouched, or refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

from landscape import EmpiricalFisherOperator, EmpiricalRisk, GGNOperator, HessianOperator, worst_case_sharpness

OPERATORS = [HessianOperator, GGNOperator, EmpiricalFisherOperator]


def some_data(num: int = 8, width: int = 3, classes: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(num, width, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (num,), generator=generator)


def assert_right(risk: EmpiricalRisk, plain: EmpiricalRisk) -> None:
    """Loss, gradient and Hessian are those of a model without the peculiarity, also at another point."""
    for theta in (plain.theta, plain.theta + 0.3):
        assert risk.loss(theta) == pytest.approx(plain.loss(theta), rel=1e-10)
        torch.testing.assert_close(risk.gradient(theta), plain.gradient(theta))
        dense = HessianOperator(plain, theta=theta).to_dense()
        torch.testing.assert_close(HessianOperator(risk, theta=theta).to_dense(), dense)


class Peculiar(nn.Module):
    """Stores activations, counts its calls, appends to a list and changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.calls, self.seen = 0, []

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        self.calls += 1
        self.activation = self.linear(x)
        self.seen.append(self.activation)
        return self.activation


def test_what_a_model_does_to_itself_and_its_inputs_is_undone() -> None:
    torch.manual_seed(0)
    model, (x, y) = Peculiar().double(), some_data()
    plain = nn.Linear(3, 2).double()
    plain.load_state_dict(model.linear.state_dict())
    before, batch = x.clone(), (x, y)
    risk = EmpiricalRisk(model, [batch])
    reference = EmpiricalRisk(nn.Sequential(plain), [(2 * x, y)])
    assert_right(risk, reference)
    worst_case_sharpness(risk, 0.1, steps=2, restarts=1, max_passes=1)
    assert torch.equal(x, before) and model.calls == 0 and model.seen == [] and not hasattr(model, "activation")
    copy.deepcopy(model)


def test_weight_normalisation_of_the_old_style_leaves_no_graph_behind() -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        model = nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).double()
    state = model[0].weight
    risk = EmpiricalRisk(model, [some_data()])
    risk.gradient()
    for kind in OPERATORS:
        kind(risk, check=False).matvec(torch.ones(risk.num_params))
    assert model[0].weight is state
    direction = torch.randn(risk.num_params, dtype=torch.float64)
    numeric = (risk.loss(risk.theta + 1e-6 * direction) - risk.loss(risk.theta - 1e-6 * direction)) / 2e-6
    assert float(risk.gradient() @ direction) == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_the_weights_are_those_at_the_time_of_the_call(own: torch.dtype, dtype: torch.dtype | None) -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(own).eval(), some_data()
    risk = EmpiricalRisk(model, [(x, y)], params="0", dtype=dtype)
    kept = HessianOperator(risk)
    before = kept.matvec(torch.ones(risk.num_params))
    with torch.no_grad():
        for changed in (model[0].weight, model[2].weight, model[1].running_mean):
            loss = risk.loss()
            changed.mul_(1.5).add_(0.1)
            fresh = EmpiricalRisk(copy.deepcopy(model), [(x, y)], params="0", dtype=dtype)
            assert risk.loss() == fresh.loss() != loss
            assert torch.equal(risk.theta, fresh.theta)
    torch.testing.assert_close(kept.matvec(torch.ones(risk.num_params)), before)  # but an operator keeps its point
    assert model[0].weight.dtype == own


def test_an_embedding_that_renormalises_is_not_rewritten() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4, max_norm=0.5), nn.Flatten(), nn.Linear(4, 2))
    data = [(torch.tensor([[1], [2]]), torch.tensor([0, 1]))]
    before = model[0].weight.clone()
    risk = EmpiricalRisk(model, data, params="2")
    risk.gradient()
    HessianOperator(risk).matvec(torch.ones(risk.num_params))
    assert torch.equal(model[0].weight, before)
    with pytest.raises(ValueError, match="max_norm"):
        EmpiricalRisk(model, data)


class Checkpointed(nn.Module):
    def __init__(self, *, checkpoints: bool, reentrant: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        self.checkpoints, self.reentrant = checkpoints, reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.checkpoints:
            return self.last(checkpoint(torch.tanh, hidden, use_reentrant=self.reentrant))
        return self.last(torch.tanh(hidden))


def test_checkpointing_is_refused() -> None:
    """Its backward pass runs modules again, after the functional call has put their own weights back."""
    with pytest.raises(ValueError, match="checkpoints activations"):
        EmpiricalRisk(Checkpointed(checkpoints=True).double(), [some_data()])
    EmpiricalRisk(Checkpointed(checkpoints=False).double(), [some_data()])


class Rotary(nn.Module):
    """A complex buffer, as of rotary embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        angles = torch.tensor([0.3, 1.1])
        self.register_buffer("turn", torch.polar(torch.ones(2), angles))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.view_as_real(torch.view_as_complex(x.view(len(x), 2, 2)) * self.turn)
        return self.linear(turned.flatten(1))


def test_complex_buffers_keep_their_imaginary_part() -> None:
    torch.manual_seed(0)
    model, (x, y) = Rotary(), some_data(width=4)
    single = EmpiricalRisk(model, [(x.float(), y)])
    double = EmpiricalRisk(model, [(x, y)], dtype=torch.float64)
    assert double.loss() == pytest.approx(single.loss(), rel=1e-6)


class Experts(nn.Module):
    """The first input of a batch decides for all of it which expert answers."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[int(x[0, 0] > 0)](x)


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("budget", [0, 2**30])
def test_a_batch_need_not_use_the_weights(kind: type, budget: int) -> None:
    torch.manual_seed(0)
    model, (x, y) = Experts().double(), some_data(12)
    left, right = x[x[:, 0] <= 0], x[x[:, 0] > 0]
    labels = y[: len(left)], y[len(left) :]
    both = EmpiricalRisk(model, [(left, labels[0]), (right, labels[1])], params=r"experts\.1")
    alone = EmpiricalRisk(model.experts[1], [(right, labels[1])])
    share = len(right) / 12
    torch.testing.assert_close(both.gradient(), share * alone.gradient())
    torch.testing.assert_close(
        kind(both, graph_budget=budget).to_dense(), share * kind(alone, graph_budget=budget).to_dense()
    )
    unused = EmpiricalRisk(model, [(left, labels[0])], params=r"experts\.1")
    with pytest.raises(ValueError, match="params: the loss has no gradient"):
        unused.gradient()
    with pytest.raises(ValueError, match="params: the loss has no gradient"):
        kind(unused)


class Stream(IterableDataset):
    def __iter__(self):
        x, y = some_data(10)
        return iter(zip(x, y, strict=True))


def test_loaders_that_leave_examples_out_are_refused() -> None:
    data, model = TensorDataset(*some_data(10)), nn.Linear(3, 2).double()
    dropping = DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 4, drop_last=True))
    with pytest.raises(ValueError, match="leave out 2 of 10"):
        EmpiricalRisk(model, dropping)
    keeping = DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 4, drop_last=False))
    assert EmpiricalRisk(model, keeping).num_examples == 10
    with pytest.raises(ValueError, match="leave out some examples"):
        EmpiricalRisk(model, DataLoader(Stream(), batch_size=4, drop_last=True))
    assert EmpiricalRisk(model, DataLoader(Stream(), batch_size=4)).num_examples == 10
    with pytest.raises(ValueError, match="got 3 parts in batch 0"):
        EmpiricalRisk(model, [(some_data()[0], torch.zeros(8), some_data()[1])])


def test_kept_bytes_are_those_of_every_batch() -> None:
    """Batches of other lengths save other amounts; the first one says nothing about them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).double()

    def mean_loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return outputs.square().mean(dim=(1, 2))

    batches = [(torch.randint(0, 9, (2, length)), torch.zeros(2)) for length in (4, 256, 256)]
    one, two, three = (HessianOperator(EmpiricalRisk(model, batches[:count], mean_loss)) for count in (1, 2, 3))
    assert two.kept_bytes > 10 * one.kept_bytes
    assert three.kept_bytes - two.kept_bytes == two.kept_bytes - one.kept_bytes
    limited = HessianOperator(EmpiricalRisk(model, batches, mean_loss), graph_budget=two.kept_bytes)
    assert limited.kept_batches == 2 and limited.kept_bytes == two.kept_bytes


def test_running_out_of_memory_in_a_product_lets_the_kept_graphs_go(monkeypatch: pytest.MonkeyPatch) -> None:
    risk = EmpiricalRisk(nn.Linear(3, 2).double(), [some_data(), some_data(5)])
    operator, vector = HessianOperator(risk), torch.ones(8, dtype=torch.float64)
    right, pullback = operator.matvec(vector), HessianOperator.pullback

    def scarce(self: HessianOperator, graphs: list[Any], vector: Tensor) -> Any:
        if len(graphs) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return pullback(self, graphs, vector)

    monkeypatch.setattr(HessianOperator, "pullback", scarce)
    torch.testing.assert_close(operator.matvec(vector), right)
    assert operator.kept_batches == 0 and operator.kept_bytes == 0
