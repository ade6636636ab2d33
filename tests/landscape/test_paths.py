"""Paths: barriers of known wells, and a curve around a planted one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from landscape import EmpiricalRisk, bezier_path, linear_path
from tests.landscape.conftest import Quadratic


class DoubleWell(nn.Module):
    """Loss (w² − 1)² + tilt · w, finite for |w| < 5."""

    def __init__(self, tilt: float = 0.0) -> None:
        super().__init__()
        self.w, self.tilt = nn.Parameter(torch.zeros(1, dtype=torch.float64)), tilt

    def forward(self, inputs: Tensor) -> Tensor:
        loss = (self.w.square() - 1).square() + self.tilt * self.w
        return torch.where(self.w.abs() < 5, loss, math.inf).expand(len(inputs))


class Hill(nn.Module):
    """A hill of height 1 near the origin of the plane, beside the chord from (−1, 0) to (1, 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        top = torch.tensor([0.0, -0.05], dtype=torch.float64)
        return torch.exp(-10 * (self.w - top).square().sum()).expand(len(inputs))


def risk_of(model: nn.Module) -> EmpiricalRisk:
    return EmpiricalRisk(model, [(torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2))], loss=lambda out, _: out)


def points(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([value], dtype=torch.float64) for value in values)


def test_the_barrier_of_a_double_well() -> None:
    path = linear_path(risk_of(DoubleWell()), *points(-1.0, 1.0))
    assert path.barrier == pytest.approx(1.0)
    assert path.positions.tolist() == pytest.approx([t / 10 for t in range(11)])
    assert path.losses.tolist() == pytest.approx([((2 * t / 10 - 1) ** 2 - 1) ** 2 for t in range(11)])


def test_a_tilt_does_not_change_the_barrier() -> None:
    path = linear_path(risk_of(DoubleWell(tilt=0.7)), *points(-1.0, 1.0))
    assert path.barrier == pytest.approx(1.0)
    assert path.losses[[0, -1]].tolist() == pytest.approx([-0.7, 0.7])


def test_a_convex_loss_has_no_barrier() -> None:
    hessian = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    risk = risk_of(Quadratic(torch.ones(2, dtype=torch.float64), hessian))
    ends = torch.tensor([[-1.0, 2.0], [0.5, 1.0]], dtype=torch.float64)
    assert linear_path(risk, *ends).barrier == 0


def test_the_curve_goes_around_the_hill() -> None:
    risk = risk_of(Hill())
    ends = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    straight = linear_path(risk, *ends, num_points=21)
    assert straight.barrier > 0.9
    result = bezier_path(risk, *ends, steps=300, learning_rate=0.05, num_points=21, seed=0)
    assert result.path.barrier < 0.1
    assert result.control[1] > 1  # away from the hill's top, which lies below the chord
    middle = 0.25 * ends[0] + 0.5 * result.control + 0.25 * ends[1]
    assert result.path.losses[10].item() == pytest.approx(risk.loss(middle))
    assert result.path.losses[[0, -1]].tolist() == [risk.loss(end) for end in ends]
    assert result.training_losses.shape == (300,)
    assert result.training_losses[-50:].mean() < result.training_losses[:50].mean()


def test_the_seed_decides_the_curve() -> None:
    risk = risk_of(Hill())
    ends = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    first, again, other = (bezier_path(risk, *ends, steps=20, seed=seed).control for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_losses_that_are_not_finite() -> None:
    risk = risk_of(DoubleWell())
    assert bezier_path(risk, *points(-1.0, 1.0), steps=1).path.barrier < math.inf
    with pytest.raises(FloatingPointError, match="losses at the ends"):
        linear_path(risk, *points(-1.0, 6.0))


def test_bad_input() -> None:
    risk = risk_of(DoubleWell())
    left, right = points(-1.0, 1.0)
    with pytest.raises(ValueError, match=r"theta_b: expected a tensor of shape \(1,\), .*got shape \(2,\)"):
        linear_path(risk, left, torch.ones(2))
    with pytest.raises(ValueError, match="num_points: expected at least 3"):
        linear_path(risk, left, right, num_points=2)
    with pytest.raises(ValueError, match="steps: expected a count"):
        bezier_path(risk, left, right, steps=0)
    with pytest.raises(ValueError, match="learning_rate: expected a positive rate"):
        bezier_path(risk, left, right, learning_rate=math.nan)
