"""Lines and planes: exact values, many points at once against one at a time, resuming, batch statistics."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import Tensor, nn

from landscape import EmpiricalRisk, loss_line, loss_surface, losses_at, random_direction
from landscape.risk import Batch
from tests.landscape.conftest import Quadratic, tiny_vit

GRADIENT = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
HESSIAN = torch.tensor([[3.0, 1.0, 0.0], [1.0, -2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
ALPHAS, BETAS = [-1.0, 0.0, 0.5], [-2.0, 0.0, 1.0, 3.0]
E1, E2, _ = torch.eye(3, dtype=torch.float64)


class CountingRisk(EmpiricalRisk):
    """Remembers every point that was evaluated by itself."""

    points: list[Tensor]

    def loss(self, theta: Tensor | None = None) -> float:
        if theta is not None:
            self.points.append(theta.clone())
        return super().loss(theta)


def quadratic_risk() -> CountingRisk:
    batches = [(torch.zeros(n, 1, dtype=torch.float64), torch.zeros(n)) for n in (3, 2)]
    risk = CountingRisk(Quadratic(GRADIENT, HESSIAN), batches, loss=lambda out, _: out)
    risk.points = []
    return risk


def quadratic(point: Tensor) -> float:
    return float(GRADIENT @ point + 0.5 * point @ HESSIAN @ point)


@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_a_quadratic_has_its_exact_values(chunk: int | None) -> None:
    centre = torch.tensor([0.3, 0.2, -0.4], dtype=torch.float64)
    line = loss_line(quadratic_risk(), E1 + E2, ALPHAS, centre=centre, chunk=chunk)
    assert line.losses.tolist() == pytest.approx([quadratic(centre + a * (E1 + E2)) for a in ALPHAS], abs=1e-14)
    surface = loss_surface(quadratic_risk(), E1, E2, ALPHAS, BETAS, centre=centre, chunk=chunk)
    assert surface.losses.shape == (3, 4) and surface.losses.dtype == torch.float64
    for row, alpha in zip(surface.losses.tolist(), ALPHAS, strict=True):
        assert row == pytest.approx([quadratic(centre + alpha * E1 + b * E2) for b in BETAS], abs=1e-14)
    assert surface.alphas.tolist() == ALPHAS and surface.betas.tolist() == BETAS


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_transformer_at_many_points_at_once_equals_the_loop(
    digit_batches: list[dict[str, Tensor]], attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    risk = EmpiricalRisk(tiny_vit(attention), digit_batches)  # the last batch is ragged
    generator = torch.Generator().manual_seed(0)
    points = risk.theta + 0.1 * torch.randn(7, risk.num_params, generator=generator)
    expected = [risk.loss(point) for point in points]
    monkeypatch.setattr(risk, "loss", lambda theta: pytest.fail("the loop was used"))
    for chunk in (None, 3, 7):
        assert losses_at(risk, points, chunk=chunk).tolist() == pytest.approx(expected, rel=1e-6)


class Branching(nn.Module):
    """A quadratic that asks for a value, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0]))

    def forward(self, inputs: Tensor) -> Tensor:
        scale = 1.0 if self.w.sum().item() > 0 else 3.0
        return (scale * self.w.square()).expand(len(inputs))


def test_a_model_that_vmap_refuses_is_tried_once_and_looped_over(monkeypatch: pytest.MonkeyPatch) -> None:
    risk = EmpiricalRisk(Branching(), [(torch.zeros(2, 1), torch.zeros(2))], loss=lambda out, _: out)
    attempts = []
    monkeypatch.setattr(
        "landscape.surfaces.points.vmap", lambda function: attempts.append(1) or torch.func.vmap(function)
    )
    losses = losses_at(risk, torch.tensor([[1.0], [-1.0], [2.0], [-2.0]]), chunk=2)
    assert losses.tolist() == [1.0, 3.0, 4.0, 12.0]
    assert len(attempts) == 1


def test_an_error_of_the_model_is_not_swallowed() -> None:
    risk = EmpiricalRisk(nn.Linear(3, 2), [(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))], check=False)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        losses_at(risk, torch.zeros(4, 8), chunk=2)


def test_points_with_much_to_compute_go_one_by_one() -> None:
    model = nn.Sequential(nn.Linear(8, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 2))
    risk = CountingRisk(model, [(torch.ones(20_000, 8), torch.zeros(20_000, dtype=torch.long))])
    risk.points = []
    losses_at(risk, risk.theta.repeat(2, 1))  # 20,000 × 1,024 activations: 82 MB
    assert len(risk.points) == 2


def test_the_centre_has_the_loss_of_the_risk(digit_batches: list[dict[str, Tensor]]) -> None:
    risk = EmpiricalRisk(tiny_vit(), digit_batches)
    direction = random_direction(risk, seed=0)
    assert loss_line(risk, direction, [0.0], chunk=1).losses.item() == risk.loss()
    surface = loss_surface(risk, direction, random_direction(risk, seed=1), [-1.0, 0.0], [0.0, 1.0])
    assert surface.losses[1, 0].item() == pytest.approx(risk.loss(), rel=1e-6)


def test_a_partial_grid_goes_on_where_it_stopped() -> None:
    whole = loss_surface(quadratic_risk(), E1, E2, ALPHAS, BETAS)
    saved: list[Tensor] = []

    def save_and_stop(losses: Tensor) -> None:
        saved.append(losses)
        if len(saved) == 2:
            raise KeyboardInterrupt

    first = quadratic_risk()
    with pytest.raises(KeyboardInterrupt):
        loss_surface(first, E1, E2, ALPHAS, BETAS, on_chunk=save_and_stop, chunk=1)
    assert [int(losses.isnan().sum()) for losses in saved] == [11, 10]
    partial = saved[-1].clone()
    partial[2, 3] = math.inf  # a finished point too

    second = quadratic_risk()
    result = loss_surface(second, E1, E2, ALPHAS, BETAS, partial=partial, chunk=1)
    assert len(first.points) == 2 and len(second.points) == 9
    assert result.losses[2, 3] == math.inf
    finished = torch.ones(3, 4, dtype=torch.bool)
    finished[2, 3] = False
    torch.testing.assert_close(result.losses[finished], whole.losses[finished])
    assert int(partial.isnan().sum()) == 9  # the caller's tensor is left as it was

    third = quadratic_risk()
    assert torch.equal(loss_surface(third, E1, E2, ALPHAS, BETAS, partial=result.losses).losses, result.losses)
    assert third.points == []


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_model_keeps_its_bits_also_after_an_exception(digit_batches: list[dict[str, Tensor]], chunk: int) -> None:
    model = tiny_vit().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    risk = EmpiricalRisk(model, digit_batches)
    directions = random_direction(risk, seed=0), random_direction(risk, seed=1)

    def fail(losses: Tensor) -> None:
        raise OSError("disk full")

    loss_surface(risk, *directions, [0.0, 1.0], [0.0, 1.0], chunk=chunk)
    with pytest.raises(OSError, match="disk full"):
        loss_surface(risk, *directions, [0.0, 1.0], [0.0, 1.0], on_chunk=fail, chunk=chunk)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


class Logarithm(nn.Module):
    """Loss -log w: infinite at 0, not a number below."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0]))

    def forward(self, inputs: Tensor) -> Tensor:
        return -self.w.log().expand(len(inputs))


@pytest.mark.parametrize("chunk", [1, 3])
def test_losses_that_are_not_finite_count_as_infinite(chunk: int) -> None:
    risk = EmpiricalRisk(Logarithm(), [(torch.zeros(2, 1), torch.zeros(2))], loss=lambda out, _: out)
    assert loss_line(risk, torch.ones(1), [0.0, -1.0, -2.0], chunk=chunk).losses.tolist() == [0.0, math.inf, math.inf]


def normalised_network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).double()


def normalised_batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(4)
    inputs = 2 + 3 * torch.randn(14, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (14,), generator=generator)
    return list(zip(inputs.split(8), targets.split(8), strict=True))


def recomputed_by_hand(model: nn.Sequential, theta: Tensor, batches: list[Batch]) -> float:
    """The statistics written out: averages over batches of mean and unbiased variance."""
    linear, norm, last = model[0], model[1], model[4]
    parts = theta.split([24, 6, 6, 6, 18, 3])
    hidden = [inputs @ parts[0].view_as(linear.weight).T + parts[1] for inputs, _ in batches]
    mean = torch.stack([h.mean(dim=0) for h in hidden]).mean(dim=0)
    variance = torch.stack([h.var(dim=0) for h in hidden]).mean(dim=0)
    scaled = (torch.cat(hidden) - mean) / (variance + norm.eps).sqrt() * parts[2] + parts[3]
    logits = scaled.relu() @ parts[4].view_as(last.weight).T + parts[5]
    return float(nn.functional.cross_entropy(logits, torch.cat([targets for _, targets in batches])))


def test_batch_statistics_are_frozen_or_recomputed() -> None:
    model, batches = normalised_network(), normalised_batches()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    risk = EmpiricalRisk(model, batches)
    direction, alphas = random_direction(risk, seed=0), [-0.5, 0.0, 1.0]
    points = [risk.theta + alpha * direction for alpha in alphas]
    recomputed = loss_line(risk, direction, alphas, batch_norm="recomputed").losses
    assert recomputed.tolist() == pytest.approx([recomputed_by_hand(model, p, batches) for p in points], rel=1e-12)
    frozen = loss_line(risk, direction, alphas, chunk=3).losses
    assert frozen.tolist() == pytest.approx([risk.loss(p) for p in points], rel=1e-12)
    assert not torch.allclose(frozen, recomputed)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_bad_input() -> None:
    risk = quadratic_risk()
    with pytest.raises(ValueError, match=r"direction_b: expected a tensor of shape \(3,\), .*got shape \(2,\)"):
        loss_surface(risk, E1, torch.ones(2), ALPHAS, BETAS)
    with pytest.raises(ValueError, match="direction: expected finite entries"):
        loss_line(risk, math.inf * E1, ALPHAS)
    with pytest.raises(ValueError, match="centre: expected a tensor of shape"):
        loss_line(risk, E1, ALPHAS, centre=torch.ones(4))
    with pytest.raises(ValueError, match="alphas: expected a non-empty list"):
        loss_line(risk, E1, [])
    with pytest.raises(ValueError, match="betas: expected a non-empty list of finite"):
        loss_surface(risk, E1, E2, ALPHAS, [0.0, math.nan])
    with pytest.raises(ValueError, match=r"partial: expected the grid's shape \(3, 4\)"):
        loss_surface(risk, E1, E2, ALPHAS, BETAS, partial=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="chunk: expected a count of at least 1"):
        loss_line(risk, E1, ALPHAS, chunk=0)
    with pytest.raises(ValueError, match="batch_norm: expected 'frozen'"):
        loss_line(risk, E1, ALPHAS, batch_norm="train")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="running batch statistics"):
        loss_line(risk, E1, ALPHAS, batch_norm="recomputed")
    with pytest.raises(ValueError, match=r"points: expected shape \(m, 3\)"):
        losses_at(risk, E1)


def test_nothing_is_left_of_the_points(digit_batches: list[dict[str, Tensor]]) -> None:
    """The guess of a point's memory must not keep what it has counted: a graph that holds its own outputs stays."""
    risk = EmpiricalRisk(tiny_vit(), digit_batches)
    points = risk.theta.expand(2, -1)

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(one, Tensor) for one in gc.get_objects())

    losses_at(risk, points)
    before = tensors()
    losses_at(risk, points)
    assert tensors() == before
