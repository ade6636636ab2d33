"""The searches for the worst case against exact trust-region solutions and known maxima, and their promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape import (
    EmpiricalRisk,
    OwnWorstCases,
    SharpnessResult,
    join_curve,
    perturbed,
    sharpness_curve,
    worst_case_sharpness,
)
from tests.landscape.conftest import ENCODER, Quadratic, tiny_vit
from tests.reference import trust_region_maximum


def quadratic_risk(eigenvalues: list[float], seed: int = 0) -> tuple[EmpiricalRisk, np.ndarray, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    hessian = rotation @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ rotation.T
    gradient = torch.randn(size, generator=generator, dtype=torch.float64)
    batches = [(torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3))]
    risk = EmpiricalRisk(Quadratic(gradient, hessian), batches, loss=lambda out, _: out)
    return risk, gradient.numpy(), hessian.numpy()


@pytest.mark.parametrize(
    "eigenvalues",
    [[9.0, 3.0, 1.0, 0.5, 0.1, 0.01], [4.0, 1.0, 0.0, -1.0, -2.0, -5.0], [-3.0, -4.0, -5.0, -6.0, -7.0, -8.0]],
    ids=["convex", "indefinite", "concave, interior at large radii"],
)
@pytest.mark.parametrize("rho", [0.05, 1.0, 5.0])
def test_quadratics_have_their_exact_worst_case(eigenvalues: list[float], rho: float) -> None:
    risk, gradient, hessian = quadratic_risk(eigenvalues)
    exact, _ = trust_region_maximum(gradient, hessian, rho)
    result = worst_case_sharpness(risk, rho, steps=200, restarts=3)
    assert result.rise == pytest.approx(exact, rel=1e-4)
    assert result.rise <= exact * (1 + 1e-9)  # a lower bound
    assert result.epsilon.norm() <= rho * (1 + 1e-9)
    assert risk.loss(risk.theta + result.epsilon) == pytest.approx(result.worst_loss)


def test_inside_a_subspace_it_is_the_restricted_problem() -> None:
    risk, gradient, hessian = quadratic_risk([9.0, 3.0, 1.0, 0.5, -1.0, -2.0])
    basis, _ = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))
    q = basis.numpy()
    exact, _ = trust_region_maximum(q.T @ gradient, q.T @ hessian @ q, 0.7)
    result = worst_case_sharpness(risk, 0.7, steps=200, subspace=basis)
    assert result.rise == pytest.approx(exact, rel=1e-5)
    torch.testing.assert_close(basis @ (basis.T @ result.epsilon), result.epsilon)


def test_on_a_transformer_it_keeps_its_promises(digit_batches: list[dict[str, Tensor]]) -> None:
    model = tiny_vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    risk = EmpiricalRisk(model, digit_batches, params=ENCODER)
    gradient = risk.gradient()
    starts = {"mine": torch.randn(risk.num_params, generator=torch.Generator().manual_seed(0))}
    curve = sharpness_curve(
        risk, [1.0, 0.1, 2.0, 0.5], steps=8, restarts=2, screened=8, max_passes=100, starts=starts, seed=1
    )
    assert [result.rho for result in curve] == [0.1, 0.5, 1.0, 2.0]
    rises = [result.rise for result in curve]
    assert rises == sorted(rises) and rises[0] > 0
    for result in curve:
        one_step = risk.loss(risk.theta + result.rho * gradient / gradient.norm())
        assert result.one_step_loss == pytest.approx(one_step, rel=1e-5)
        assert result.worst_loss >= max(result.one_step_loss, *result.start_losses.values()) - 1e-12
        assert risk.loss(risk.theta + result.epsilon) == pytest.approx(result.worst_loss, rel=1e-5)
        assert result.epsilon.norm() <= result.rho * (1 + 1e-6)
        assert {"gradient", "mine"} < set(result.start_losses)
        assert {name.split()[0] for name in result.start_losses} >= {"example"}
        assert result.winner in (*result.start_losses, "smaller radius")
        assert result.worst_loss >= max(result.search_losses)
        assert result.gap == pytest.approx(1 - min(result.search_rises) / result.rise, abs=1e-12)
        assert result.converged == (result.gap <= 0.05)
        assert float(result.contributions.sum()) == pytest.approx(result.rise, rel=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    again = worst_case_sharpness(risk, 0.5, steps=8, restarts=1, screened=4, max_passes=1, seed=3)
    repeated = worst_case_sharpness(risk, 0.5, steps=8, restarts=1, screened=4, max_passes=1, seed=3)
    assert again.rise == repeated.rise and torch.equal(again.epsilon, repeated.epsilon)


def test_it_is_never_below_random_points_of_the_ball() -> None:
    risk, *_ = quadratic_risk([4.0, 1.0, 0.0, -1.0, -2.0, -5.0])
    worst = worst_case_sharpness(risk, 0.5, restarts=3).worst_loss
    for seed in range(200):
        direction = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert risk.loss(risk.theta + 0.5 * direction / direction.norm()) <= worst + 1e-12


class TwoHills(nn.Module):
    """A low hill where the gradient points and a high, narrow one (height 1 at distance 1) at a right angle to it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        near = 0.3 * torch.exp(-8 * ((self.w[0] - 0.5) ** 2 + self.w[1] ** 2))
        far = torch.exp(-200 * (self.w[0] ** 2 + (self.w[1] - 1.0) ** 2))
        return (near + far).expand(len(inputs))


def test_a_start_of_ones_own_reaches_a_hill_behind_another() -> None:
    risk = EmpiricalRisk(TwoHills(), [(torch.zeros(2, 1), torch.zeros(2))], loss=lambda out, _: out)
    aside = torch.tensor([0.1, 1.0], dtype=torch.float64)
    effort = {"steps": 40, "restarts": 1, "max_passes": 1}
    assert worst_case_sharpness(risk, 1.1, **effort).worst_loss == pytest.approx(0.3, abs=1e-3)
    helped = worst_case_sharpness(risk, 1.1, starts={"aside": aside}, **effort)
    assert helped.winner == "aside"
    assert helped.start_losses["aside"] == pytest.approx(1.0, abs=1e-3)
    assert helped.worst_loss == pytest.approx(1.0, abs=1e-3)


def test_a_larger_radius_helps_a_smaller_one() -> None:
    """From the centre of two hills only the larger ball's climb starts in the high one's reach."""
    risk = EmpiricalRisk(TwoHills(), [(torch.zeros(2, 1), torch.zeros(2))], loss=lambda out, _: out)
    aside = torch.tensor([0.1, 1.0], dtype=torch.float64)
    curve = sharpness_curve(risk, [0.7, 1.2], steps=40)
    with_start = sharpness_curve(risk, [0.7, 1.2], steps=40, starts={"aside": aside})
    assert with_start[0].worst_loss >= curve[0].worst_loss
    assert with_start[1].worst_loss >= with_start[0].worst_loss


def results_alone(risk: EmpiricalRisk, radii: list[float]) -> list[SharpnessResult]:
    return [worst_case_sharpness(risk, rho, steps=6, restarts=1, screened=4, max_passes=1) for rho in radii]


def test_radius_by_radius_and_joined_is_the_curve(digit_batches: list[dict[str, Tensor]]) -> None:
    risk = EmpiricalRisk(tiny_vit(), digit_batches, params=ENCODER)
    curve = sharpness_curve(risk, [0.1, 0.5, 1.0], steps=6, restarts=1, screened=4, max_passes=1)
    joined = join_curve(risk, results_alone(risk, [1.0, 0.1, 0.5]), steps=6)
    assert [result.rise for result in joined] == [result.rise for result in curve]
    assert [result.gap for result in joined] == [result.gap for result in curve]
    assert join_curve(risk, []) == []


class Bumps(nn.Module):
    """Narrow Gaussian bumps in weight space, one an example, of known heights at distance 1 from the weights."""

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(centres.shape[1], dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        heights, centres, width = inputs[:, 0], inputs[:, 2:], inputs[:, 1]
        distances = (self.w - centres).square().sum(dim=1)
        return heights * torch.exp(-distances / (2 * width**2))


def planted(num: int, size: int, seed: int) -> tuple[EmpiricalRisk, Tensor]:
    """``num`` bumps whose tallest is the narrowest, so that its gradient at the weights is the smallest."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num, size, generator=generator, dtype=torch.float64)
    centres /= centres.norm(dim=1, keepdim=True)
    heights = 0.5 + 0.4 * torch.rand(num, generator=generator, dtype=torch.float64)
    widths = torch.full((num,), 0.25, dtype=torch.float64)
    tallest = int(torch.randint(num, (1,), generator=generator))
    heights[tallest], widths[tallest] = 1.0, 0.15
    inputs = torch.cat([heights[:, None], widths[:, None], centres], dim=1)
    batches = [(part, torch.zeros(len(part))) for part in inputs.split(16)]
    return EmpiricalRisk(Bumps(centres), batches, loss=lambda out, _: out), centres[tallest]


@pytest.mark.parametrize("seed", range(5))
def test_the_tallest_of_fifty_bumps_is_found(seed: int) -> None:
    risk, summit = planted(50, 30, seed)
    result = worst_case_sharpness(risk, 1.0, seed=seed)
    assert result.converged and result.gap < 0.01
    assert float((result.epsilon - summit).norm()) < 0.1
    assert result.rise >= (risk.loss(risk.theta + summit) - result.loss) * (1 - 1e-4)
    assert result.effective_examples == pytest.approx(1.0, abs=0.2) and result.carried_by(1) > 0.9
    # Each example's own worst case is its height, less what it has at the weights already.
    heights = torch.cat([batch[0][:, 0] for batch in risk.batches])
    expected = heights - risk.per_example_losses(risk.theta)
    torch.testing.assert_close(result.own.rises, expected, rtol=0.01, atol=0.0)
    assert result.own.mean == pytest.approx(float(expected.mean()), rel=0.01)
    assert result.own.stderr == pytest.approx(float(expected.std()) / math.sqrt(50), rel=0.02)


def test_what_many_gain_a_little_beats_what_one_gains_much() -> None:
    """Twenty bumps of height 0.3 in one place, forty of height 0.5 to 0.9 and steeper at the weights in others."""
    generator = torch.Generator().manual_seed(4)
    centres = torch.randn(41, 30, generator=generator, dtype=torch.float64)
    centres /= centres.norm(dim=1, keepdim=True)
    heights = torch.cat([0.5 + 0.4 * torch.rand(40, generator=generator, dtype=torch.float64), 0.3 * torch.ones(20)])
    widths = torch.cat([torch.full((40,), 0.25), torch.full((20,), 0.18)]).double()
    centres = torch.cat([centres[:40], centres[40:].expand(20, -1)])
    inputs = torch.cat([heights[:, None], widths[:, None], centres], dim=1)
    risk = EmpiricalRisk(Bumps(centres), [(inputs, torch.zeros(60))], loss=lambda out, _: out)
    result = worst_case_sharpness(risk, 1.0, max_passes=1)
    expected = risk.loss(risk.theta + centres[-1]) - result.loss
    assert expected > 0.09 and result.one_step_rise < 0.5 * expected
    assert result.search_rises == pytest.approx((expected, expected), rel=1e-3)
    assert result.effective_examples == pytest.approx(20, rel=0.02)


def test_a_few_screened_examples_are_a_stated_sample() -> None:
    risk, _ = planted(50, 30, 0)
    result = worst_case_sharpness(risk, 1.0, restarts=2, screened=10, max_passes=1)
    assert len(result.own.examples) == 20  # two searches with samples of their own
    assert result.own.examples.tolist() == sorted(set(result.own.examples.tolist()))


def test_effort_is_doubled_until_the_searches_agree() -> None:
    """With two examples looked at a round, the tallest bump shows only after some rounds."""
    risk, _ = planted(50, 30, 1)
    options = {"restarts": 1, "screened": 2, "agreement": 0.01}
    once = worst_case_sharpness(risk, 1.0, **options, max_passes=1)
    assert not once.converged and once.gap > 0.01
    agreed = worst_case_sharpness(risk, 1.0, **options, max_passes=5000)
    assert agreed.converged and agreed.num_passes > 1.5 * once.num_passes and agreed.rise >= once.rise
    limited = worst_case_sharpness(risk, 1.0, **options, max_passes=2 * once.num_passes)
    assert once.num_passes < limited.num_passes <= 2.2 * once.num_passes


@pytest.mark.parametrize("restarts", [1, 2, 5])
def test_a_stationary_point_is_no_maximum(restarts: int) -> None:
    """Zero gradient: the rise is λ₁ρ²/2 all the same."""
    eigenvalues = torch.tensor([3.0, 1.0, 0.5, -1.0, -4.0], dtype=torch.float64)
    model = Quadratic(torch.zeros(5, dtype=torch.float64), torch.diag(eigenvalues))
    batches = [(torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3))]
    risk = EmpiricalRisk(model, batches, loss=lambda out, _: out)
    assert worst_case_sharpness(risk, 0.9, restarts=restarts, steps=60).rise == pytest.approx(1.5 * 0.81, rel=1e-4)


def test_in_the_hard_case_the_gradient_leads_elsewhere() -> None:
    """The gradient is orthogonal to the top eigenvector, the maximiser is not (Conn et al. 2000, section 7.3.1.3).

    With H = diag(4, 1, -1) and g = (0, 0.3, 0.1) the multiplier is 4: e = (±t, 0.3 / 3, 0.1 / 5) of length 1.
    """
    gradient, eigenvalues = torch.tensor([0.0, 0.3, 0.1]).double(), torch.tensor([4.0, 1.0, -1.0]).double()
    maximiser = torch.tensor([math.sqrt(1 - 0.1**2 - 0.02**2), 0.1, 0.02]).double()
    exact = float(gradient @ maximiser + 0.5 * (eigenvalues * maximiser**2).sum())
    model = Quadratic(gradient, torch.diag(eigenvalues))
    risk = EmpiricalRisk(model, [(torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3))], loss=lambda out, _: out)
    result = worst_case_sharpness(risk, 1.0, steps=60, restarts=1)
    assert result.rise == pytest.approx(exact, rel=1e-4) and result.one_step_rise < 0.6 * exact
    torch.testing.assert_close(result.epsilon.abs(), maximiser, rtol=0, atol=0.01)


class RootAtZero(nn.Module):
    """A finite loss with a NaN in the gradient: that of 0 · √|w| at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Parameter(torch.ones(2))
        self.bad = nn.Parameter(torch.zeros(2))

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.fine.square().sum() + inputs[:, 0] * self.bad.norm()) + 0 * self.bad.abs().sqrt().sum()


def test_a_gradient_that_is_no_number_is_an_error_that_says_where() -> None:
    batches = [(torch.zeros(2, 1), torch.zeros(2)), (torch.ones(3, 1), torch.zeros(3))]
    risk = EmpiricalRisk(RootAtZero(), batches, loss=lambda out, _: out)
    with pytest.raises(FloatingPointError, match=r"batch 0.*bad"):
        worst_case_sharpness(risk, 0.1)


def test_contributions_follow_the_weights_of_the_examples() -> None:
    """Rises of 1 and 3 with weights 3 and 1: equal parts, two effective examples."""
    result = SharpnessResult(
        rho=1.0,
        loss=0.0,
        worst_loss=1.5,
        epsilon=torch.zeros(1),
        search_losses=(1.5, 1.2),
        agreement=0.05,
        winner="example 1",
        one_step_loss=0.1,
        start_losses={},
        example_rises=torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64),
        example_weights=torch.tensor([0.75, 0.25, 0.0], dtype=torch.float64),
        own=OwnWorstCases(*(torch.zeros(0, dtype=torch.float64) for _ in range(3))),
        num_passes=10,
    )
    assert result.contributions.tolist() == [0.75, 0.75, 0.0]
    assert result.effective_examples == pytest.approx(2.0)
    assert result.carried_by(1) == pytest.approx(0.5) and result.carried_by(5) == pytest.approx(1.0)
    assert result.gap == pytest.approx(0.2) and not result.converged
    assert math.isnan(result.own.mean) and math.isnan(result.own.stderr)
    assert "DISAGREE" in repr(result) and len(repr(result)) < 200


def test_batches_that_cannot_be_taken_apart_are_searched_from_noise() -> None:
    """A tensor without a row per example: no example starts, the maximum is found all the same."""
    _, gradient, hessian = quadratic_risk([4.0, 1.0, 0.5, -2.0])
    model = Quadratic(torch.tensor(gradient), torch.tensor(hessian))
    batches = [(torch.zeros(3, 1, dtype=torch.float64), torch.zeros(7))]
    risk = EmpiricalRisk(model, batches, loss=lambda out, _: out)
    exact, _ = trust_region_maximum(gradient, hessian, 0.8)
    result = worst_case_sharpness(risk, 0.8, steps=100)
    assert result.rise == pytest.approx(exact, rel=1e-4)
    assert all(name.startswith(("gradient", "random")) for name in result.start_losses)
    assert len(result.own.rises) == 0


def test_radius_zero_rises_by_nothing(digit_batches: list[dict[str, Tensor]]) -> None:
    result = worst_case_sharpness(EmpiricalRisk(tiny_vit(), digit_batches, params=ENCODER), 0.0)
    assert result.rise == 0 and result.epsilon.norm() == 0


@pytest.mark.parametrize("rho", [-1.0, math.nan, math.inf])
def test_bad_radii(rho: float) -> None:
    risk, *_ = quadratic_risk([1.0, 2.0])
    with pytest.raises(ValueError, match="rho: expected a finite radius"):
        worst_case_sharpness(risk, rho)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected a count"),
        ({"restarts": 0}, "restarts: expected a count"),
        ({"screened": 0}, "screened"),
        ({"max_passes": 0}, "max_passes"),
        ({"agreement": 1.0}, "agreement"),
        ({"agreement": math.nan}, "agreement"),
        ({"storage": "cloud"}, "storage"),
    ],
)
def test_bad_efforts(options: dict, message: str) -> None:
    risk, *_ = quadratic_risk([1.0, 2.0])
    with pytest.raises(ValueError, match=message):
        worst_case_sharpness(risk, 1.0, **options)


def test_perturbed_restores_the_bits_also_after_an_exception() -> None:
    weight = torch.randn(100)
    original = weight.clone()
    with pytest.raises(RuntimeError, match="inside"), perturbed([weight], [torch.full((100,), 1e10)]):
        assert not torch.equal(weight, original)
        raise RuntimeError("inside")
    assert torch.equal(weight, original)
