"""Which rows are examples, which of them count, and whether they can be looked at one by one."""

from __future__ import annotations

import collections
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from landscape import (
    EmpiricalRisk,
    HessianOperator,
    average_sharpness,
    cross_entropy_of,
    lanczos,
    m_sharpness,
    mse,
    trust_region_maximum,
    worst_case_sharpness,
)

SMALL: dict[str, Any] = {"restarts": 2, "steps": 5, "max_passes": 10}


def test_a_start_of_the_users_leaves_the_searchs_own_in_place() -> None:
    model, x = nn.Linear(5, 1, bias=False), torch.randn(12, 5)
    risk = EmpiricalRisk(model, [(x, torch.zeros(12))], loss=lambda outputs, batch: outputs[:, 0])
    for name in ("gradient", "centre"):
        with pytest.raises(ValueError, match="what the search calls a start of its own"):
            worst_case_sharpness(risk, 0.1, starts={name: -risk.gradient()}, **SMALL)
    found = worst_case_sharpness(risk, 0.1, starts={"mine": -risk.gradient()}, **SMALL)
    assert float(found.epsilon.norm()) == pytest.approx(0.1, rel=1e-5)
    assert found.rise == pytest.approx(0.1 * float(x.mean(dim=0).norm()), rel=1e-4)


@pytest.mark.parametrize("first", [0, 3])
def test_few_labelled_examples_among_many(first: int) -> None:
    torch.manual_seed(1)
    model, x, y = nn.Linear(4, 3), torch.randn(1280, 4), torch.full((1280,), -100)
    y[first::10] = torch.randint(0, 3, (128,))
    risk = EmpiricalRisk(model, [(x, y)])
    found = worst_case_sharpness(risk, 0.1, **SMALL)
    assert found.rise > 0 and bool((y[found.own.examples] != -100).all())
    few = EmpiricalRisk(model, [(x[first::10], y[first::10])])
    assert found.rise == pytest.approx(worst_case_sharpness(few, 0.1, **SMALL).rise, rel=0.02)


@pytest.mark.parametrize("labelled", [1, 2])
def test_the_error_of_single_examples_is_of_those_that_count(labelled: int) -> None:
    torch.manual_seed(1)
    model, x, y = nn.Linear(4, 3), torch.randn(40, 4), torch.full((40,), -100)
    y[:labelled] = torch.arange(labelled)
    own = worst_case_sharpness(EmpiricalRisk(model, [(x, y)]), 0.1, screened=2, **SMALL).own
    assert own.examples.tolist() == list(range(labelled))
    if labelled == 1:
        assert math.isnan(own.stderr)
    else:
        assert own.stderr == pytest.approx(float(own.rises.std()) / math.sqrt(2))


class Averaging(nn.Module):
    """Takes the mean over as many places as a list says."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        return torch.stack([self.linear(row[:length]).mean(dim=0) for row, length in zip(x, lengths, strict=True)])


def test_values_of_examples_in_a_list_are_not_given_to_others() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 7, 6), torch.randint(0, 3, (8,))
    batches = [({"x": x[:4], "lengths": [7] * 4}, y[:4]), ({"x": x[4:], "lengths": [1, 7, 2, 3]}, y[4:])]
    risk = EmpiricalRisk(Averaging(), batches)
    with pytest.raises(ValueError, match=r"lists of plain values as long as the batches.*make them tensors"):
        m_sharpness(risk, 0.5, m=1)
    found = worst_case_sharpness(risk, 0.1, **SMALL)
    assert risk.loss(risk.theta + found.epsilon) - risk.loss() == pytest.approx(found.rise, rel=1e-5)


class Mixing(nn.Module):
    """Rows see the mean of all, which a head of zeros hides."""

    def __init__(self, zero: bool) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        logits: Tensor = self.head(h - h.mean(dim=0))
        return logits


@pytest.mark.parametrize("zero", [False, True])
def test_rows_that_depend_on_each_other_are_seen_whatever_the_point(zero: bool) -> None:
    torch.manual_seed(0)
    y = torch.randint(0, 3, (8,))
    y[0] = y[-1] = -100 if not zero else 0
    with pytest.raises(ValueError, match=r"whose losses do not depend on the rows beside them"):
        m_sharpness(EmpiricalRisk(Mixing(zero), [(torch.randn(8, 4), y)]), 0.3, m=4)


class Graphs(nn.Module):
    """One message pass, and sums over the nodes of each graph."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(features, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor, batch: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        h = h.index_add(0, edges[1], h[edges[0]])
        logits: Tensor = self.b(torch.zeros(int(batch.max()) + 1, 8).index_add(0, batch, h))
        return logits


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(10, 4), nn.Linear(4, 3)

    def forward(self, text: Tensor, offsets: Tensor) -> Tensor:
        logits: Tensor = self.head(self.table(text, offsets))
        return logits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 4), nn.Linear(4, 3)

    def forward(self, seq: Any) -> Tensor:
        logits: Tensor = self.head(self.rnn(seq)[1][0])
        return logits


def runs() -> list[tuple[nn.Module, dict[str, Any]]]:
    graph = torch.tensor([0] * 4 + [1] * 6 + [2] * 3)
    labels = torch.tensor([0, 1, 2])
    return [
        (
            Graphs(features),
            {"x": torch.randn(13, features), "edges": torch.randint(0, 13, (2, 30)), "batch": graph, "labels": labels},
        )
        for features in (5, 3)
    ] + [
        (Bags(), {"text": torch.randint(0, 10, (17,)), "offsets": torch.tensor([0, 4, 9]), "labels": labels}),
        (Recurrent(), {"seq": pack_sequence([torch.randn(n, 2) for n in (5, 3, 2)]), "labels": labels}),
    ]


@pytest.mark.parametrize("number", range(4))
def test_examples_that_are_runs_of_rows(number: int) -> None:
    torch.manual_seed(0)
    model, batch = runs()[number]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    risk = EmpiricalRisk(model, [batch])
    assert risk.num_examples == 3
    assert risk.loss() == pytest.approx(float(F.cross_entropy(model(**inputs), batch["labels"])), rel=1e-5)
    assert worst_case_sharpness(risk, 0.1, **SMALL).rise > 0
    if number != 2:  # torch has no second derivative of an EmbeddingBag
        assert bool(lanczos(HessianOperator(risk), 1).converged.all())


def test_more_rows_than_labels_are_still_a_mistake() -> None:
    with pytest.raises(
        ValueError, match=r"labels: expected those of 13 examples in batch 0, got labels of shape \(3,\)"
    ):
        EmpiricalRisk(nn.Linear(4, 3), [(torch.randn(13, 4), torch.tensor([0, 1, 2]))])


def test_rounding_counts_in_the_error_of_a_small_rise() -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        batch = (torch.randn(50, 5), torch.randint(0, 3, (50,)))
        single, double = (
            average_sharpness(EmpiricalRisk(model, [batch], dtype=dtype), 1e-5, num_samples=50)
            for dtype in (None, torch.float64)
        )
        assert abs(single.rise - double.rise) <= 3 * single.stderr
        assert double.stderr < 1e-9 < single.stderr
        step = m_sharpness(EmpiricalRisk(model, [batch]), 1e-8, m=5)
        exact = m_sharpness(EmpiricalRisk(model, [batch], dtype=torch.float64), 1e-8, m=5)
        assert abs(step.rise - exact.rise) <= 3 * step.stderr


def test_chunks_weigh_as_their_examples_do() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 3).double(), torch.randn(40, 6).double(), torch.randint(0, 3, (40,))
    weights = torch.tensor([1.0, 1.0, 50.0])
    risk = EmpiricalRisk(model, [(x, y)], loss=cross_entropy_of(weights))
    own = worst_case_sharpness(risk, 0.1, **SMALL).own
    steps = m_sharpness(risk, 0.1, m=1)
    assert steps.rise <= own.mean * (1 + 1e-9)
    rises = []
    for row, label in zip(x, y, strict=True):
        loss = F.cross_entropy(model(row[None]), label[None])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        moved = {n: p + 0.1 * g / norm for (n, p), g in zip(model.named_parameters(), gradients, strict=True)}
        there = F.cross_entropy(torch.func.functional_call(model, moved, (row[None],)), label[None])
        rises.append(float(there - loss))
    mean = float((weights[y] * torch.tensor(rises)).sum() / weights[y].sum())
    assert steps.rise == pytest.approx(mean, rel=1e-6)


class Noting(nn.Module):
    """Counts its calls in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.loads, self.cache = nn.Linear(3, 3), [torch.zeros(3)], {"k": [0]}
        self.calls: collections.Counter[str] = collections.Counter()
        self.array, self.last = np.zeros(3), collections.deque([0], maxlen=3)
        self.by_name: collections.defaultdict[str, list[int]] = collections.defaultdict(list)

    def forward(self, x: Tensor) -> Tensor:
        self.calls["n"] += 1
        self.array += 1
        self.loads[0] += 1
        self.cache["k"].append(1)
        self.last.append(1)
        self.by_name["k"].append(1)
        logits: Tensor = self.linear(x)
        return logits


def test_whatever_a_model_notes_on_itself_is_put_back() -> None:
    model = Noting()
    EmpiricalRisk(model, [(torch.randn(6, 3), torch.randint(0, 3, (6,)))]).loss()
    assert not model.calls and not model.array.any() and not model.loads[0].any() and not model.by_name
    assert model.cache == {"k": [0]} and list(model.last) == [0] and model.last.maxlen == 3
    assert type(model.calls) is collections.Counter and type(model.by_name) is collections.defaultdict


def test_a_loss_that_writes_to_its_labels_writes_to_a_copy() -> None:
    labels = torch.tensor([0, -1, 2, 1])

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        batch[1][batch[1] < 0] = 0
        return F.cross_entropy(outputs, batch[1], reduction="none")

    EmpiricalRisk(nn.Linear(3, 3), [(torch.randn(4, 3), labels)], loss=loss).loss()
    assert labels.tolist() == [0, -1, 2, 1]


def test_whole_numbers_of_numpy_seed_and_count() -> None:
    risk = EmpiricalRisk(nn.Linear(6, 3), [(torch.randn(12, 6), torch.randint(0, 3, (12,)))])
    for seed in (np.int64(3), 2**70, -5):
        assert average_sharpness(risk, 0.1, seed=seed).rise == average_sharpness(risk, 0.1, seed=int(seed)).rise
        assert worst_case_sharpness(risk, 0.1, seed=seed, **SMALL).rise > 0
    assert m_sharpness(risk, 0.1, m=np.int64(3)).rise == m_sharpness(risk, 0.1, m=3).rise
    trust_region_maximum(HessianOperator(risk), risk.gradient(), 0.1, seed=np.int64(3))
    with pytest.raises(ValueError, match="m: expected"):
        m_sharpness(risk, 0.1, m=True)


def test_targets_lie_in_memory_as_they_like() -> None:
    x, y = torch.randn(6, 1, 4, 5), torch.randint(0, 3, (6, 5, 4)).transpose(1, 2)
    conv = nn.Conv2d(1, 3, 3, padding=1)
    risk = EmpiricalRisk(conv, [(x, y)], loss=nn.CrossEntropyLoss())
    assert risk.loss() == pytest.approx(float(F.cross_entropy(conv(x), y)), rel=1e-5)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(60, 60))
    t = torch.randn(6, 4, 5, 3).permute(0, 3, 1, 2)
    for loss in (mse, nn.L1Loss()):
        plain = F.mse_loss if loss is mse else F.l1_loss
        expected = float(plain(flat(t), t.reshape(6, -1)))
        assert EmpiricalRisk(flat, [(t, t)], loss=loss).loss() == pytest.approx(expected, rel=1e-5)


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.net(x).squeeze()
        return values


def test_a_single_example_of_a_model_that_squeezes_is_one() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(20, 3), torch.randn(20)
    risk = EmpiricalRisk(Squeezed(), [(x[:19], y[:19]), (x[19:], y[19:])], loss=mse)
    assert worst_case_sharpness(risk, 0.1, **SMALL).rise > 0 and m_sharpness(risk, 0.1, m=1).rise > 0


class OfNumpy:
    """Projects in float64."""

    dimension = 3

    def __init__(self, size: int) -> None:
        self.q = np.linalg.qr(np.random.default_rng(0).standard_normal((size, 3)))[0]

    def project(self, vector: Tensor) -> Tensor:
        return torch.from_numpy(self.q @ (self.q.T @ vector.numpy()))


def test_a_projection_of_numpys_is_one() -> None:
    risk = EmpiricalRisk(nn.Linear(6, 3), [(torch.randn(12, 6), torch.randint(0, 3, (12,)))])
    found = worst_case_sharpness(risk, 0.1, subspace=OfNumpy(21), **SMALL)
    basis = torch.from_numpy(OfNumpy(21).q).float()
    torch.testing.assert_close(basis @ (basis.T @ found.epsilon), found.epsilon, rtol=1e-4, atol=1e-6)


def test_whole_weights_and_weights_without_entries() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    model.register_parameter("steps", nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False))
    with pytest.raises(ValueError, match=r"params: steps holds numbers of torch.int8"):
        EmpiricalRisk(model, [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))], params=".*")
    empty = nn.Sequential(nn.Linear(3, 2))
    empty.add_module("none", nn.Embedding(0, 4))
    data = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = empty

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner[0](x)
            return logits

    assert average_sharpness(EmpiricalRisk(First(), data), 0.1, scale="filter").rise > -1


def test_a_mean_over_the_batch_is_the_mean_over_examples() -> None:
    torch.manual_seed(0)
    x, targets = torch.randn(6, 4), torch.softmax(torch.randn(6, 3), dim=1)
    model, loss = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(dim=1)), nn.KLDivLoss(reduction="batchmean")
    risk = EmpiricalRisk(model, [(x[:4], targets[:4]), (x[4:], targets[4:])], loss=loss)
    assert risk.loss() == pytest.approx(float(loss(model(x), targets)), rel=1e-5)


@pytest.mark.parametrize("adaptive", ["elementwise", "filter"])
@pytest.mark.parametrize("norm", ["l2", "layerwise", "linf"])
def test_adaptive_balls_do_not_see_a_rescaling_between_layers(norm: str, adaptive: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(30, 6).double(), torch.randint(0, 3, (30,))
    rises = []
    for scale in (1.0, 8.0):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
        with torch.no_grad():
            model[0].weight.mul_(scale)
            model[2].weight.div_(scale)
        options: Any = {"norm": norm, "adaptive": adaptive}
        rises.append(worst_case_sharpness(EmpiricalRisk(model, [(x, y)]), 0.2, **options, **SMALL).rise)
    assert rises[1] == pytest.approx(rises[0], rel=1e-9)
