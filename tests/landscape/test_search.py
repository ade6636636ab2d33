"""What a search makes of losses that are infinite, of parts of the data, and of starts that lie beside each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from landscape import EmpiricalRisk, Layout, worst_case_sharpness
from landscape.sharpness.ascent import Climb, Point
from landscape.sharpness.balls import Ball, ball_around
from landscape.sharpness.search import Effort, End, Search, highest_apart
from landscape.sharpness.shelf import held
from landscape.sharpness.surroundings import Surroundings
from tests.landscape.conftest import Quadratic


class Cliff(nn.Module):
    """Loss w² that is infinite beyond |w| = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5]))

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.w.square() / (self.w.abs() < 1)).expand(len(inputs))


def test_an_infinite_loss_is_reported_as_such() -> None:
    risk = EmpiricalRisk(Cliff(), [(torch.zeros(2, 1), torch.zeros(2))], loss=lambda out, _: out)
    assert worst_case_sharpness(risk, 0.4).rise == pytest.approx(0.81 - 0.25, rel=1e-5)
    assert worst_case_sharpness(risk, 1.0).worst_loss == math.inf
    outside = Cliff()
    outside.w.data += 2
    with pytest.raises(FloatingPointError, match="centre"):
        worst_case_sharpness(
            EmpiricalRisk(outside, [(torch.zeros(2, 1), torch.zeros(2))], loss=lambda out, _: out), 0.1
        )


def test_one_infinite_loss_among_others_is_infinite() -> None:
    """The cliff of one example, and nineteen that are the farther from theirs the more w grows."""

    class OneCliff(Cliff):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.where(inputs[:, 0] > 0, super().forward(inputs), -0.01 * self.w)

    inputs = torch.zeros(20, 1)
    inputs[3] = 1
    result = worst_case_sharpness(EmpiricalRisk(OneCliff(), [(inputs, torch.zeros(20))], loss=lambda out, _: out), 1.0)
    assert result.worst_loss == math.inf
    assert not [loss for loss in result.start_losses.values() if 1e30 < loss < math.inf]


class Halves(nn.Module):
    """Two experts; an input uses that of its sign."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(2, 3) for _ in range(2))

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = int(inputs[0, 0] > 0) if bool((inputs[:, 0] > 0).eq(inputs[0, 0] > 0).all()) else 2
        if chosen < 2:
            return self.experts[chosen](inputs)
        return torch.where(inputs[:, :1] > 0, self.experts[1](inputs), self.experts[0](inputs))


def test_parts_of_the_data_need_not_use_the_weights_or_count() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(12, 2, generator=generator), torch.arange(12) % 3
    inputs[:, 0] = -inputs[:, 0].abs()
    inputs[4, 0] = 0.5  # the only one of the second expert
    torch.manual_seed(0)
    one_uses = EmpiricalRisk(Halves(), [(inputs, labels)], params=r"experts\.1")
    assert worst_case_sharpness(one_uses, 0.5).rise > 0
    labels = labels.clone()
    labels[[2, 7]] = -100
    unlabelled = EmpiricalRisk(Halves(), [(inputs, labels)])
    result = worst_case_sharpness(unlabelled, 0.5)
    assert result.rise > 0 and result.converged
    assert bool((result.example_rises[[2, 7]] == 0).all())


def test_climbs_that_have_met_give_way_to_others() -> None:
    """Three on their way to one maximum, and a lower one elsewhere."""
    ahead, close, closer, elsewhere = [1.0, 0.0], [1.0, 0.1], [1.0, 0.01], [0.0, 1.0]
    losses = {"ahead": 3.0, "close": 2.0, "closer": 1.5, "elsewhere": 1.0}
    ends = {"ahead": ahead, "close": close, "closer": closer, "elsewhere": elsewhere}
    climbs, ball = [], Ball(1.0, "l2", Layout(("w",), (torch.Size([2]),)))
    for name, end in ends.items():
        point = Point(torch.tensor(end), losses[name], torch.zeros(2))
        climbs.append((name, Climb(lambda epsilon: point, ball, point)))  # noqa: B023  # never called
    assert [name for name, _ in highest_apart(ball, climbs, 3)] == ["ahead", "elsewhere"]
    assert [name for name, _ in highest_apart(ball, climbs, 1)] == ["ahead"]


def test_a_start_that_was_given_is_climbed_from_however_many_are_higher() -> None:
    """Twelve ends that lie apart, of rises 1 to 0.89, one of them far below the others, and one that was given."""
    size = 14
    model = Quadratic(torch.zeros(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64))
    batches = [(torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3))]
    around = Surroundings(EmpiricalRisk(model, batches, loss=lambda out, _: out))
    ball = ball_around(around.risk, 1.0, norm="l2", adaptive="none", relative=False, subspace=None)
    axes = torch.eye(size, dtype=torch.float64)
    ends = [(f"example {i}", End(around.centre_loss + 1 - 0.01 * i, held(axes[i]))) for i in range(12)]
    ends += [("far below", End(around.centre_loss + 0.5, held(axes[12])))]
    ends += [("given", End(around.centre_loss + 0.1, held(axes[13])))]
    effort = Effort(steps=4, restarts=1, screened=1, tol=1e-4)
    search = Search(around, ball, effort, seed=0, number=0, total=2, starts={"given": held(axes[13])})
    assert [name for name, _ in search._climbed_from(ends)] == [*(f"example {i}" for i in range(8)), "given"]
    assert [name for name, _ in search._climbed_from(ends[11:])] == ["example 11", "given"]
