"""Balls of every shape: projections, extreme points, and what adaptive ones do not see."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from landscape import EmpiricalRisk, filter_normalize, sharpness_curve, worst_case_sharpness
from landscape.sharpness import Ball, ball_around
from tests.landscape.test_worst_case import quadratic_risk

NORMS = ["l2", "layerwise", "linf"]
ADAPTIVE = ["none", "elementwise", "filter"]


def small_network(scale: float = 1.0) -> nn.Module:
    """Two ReLU layers; ``scale`` moves weight from the second to the first, which changes nothing it computes."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].weight *= scale
        model[0].bias *= scale
        model[2].weight /= scale
    return model


def network_risk(scale: float = 1.0) -> EmpiricalRisk:
    torch.manual_seed(5)
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))
    return EmpiricalRisk(small_network(scale), [(x, y)])


def ball(norm: str, adaptive: str, rho: float = 0.3) -> Ball:
    return ball_around(network_risk(), rho, norm=norm, adaptive=adaptive, relative=False, subspace=None)


def size(shape: Ball, epsilon: Tensor) -> float:
    """Radius of the smallest ball that holds a perturbation, from the definitions."""
    u = epsilon if shape.scale is None else torch.where(shape.scale > 0, epsilon / shape.scale, 0.0)
    if shape.norm == "linf":
        return float(u.abs().max())
    if shape.norm == "l2":
        return float(u.norm())
    theta = network_risk().theta
    if shape.scale is not None:  # adaptive coordinates are relative to the weights, and so is a tensor's share
        theta = torch.where(shape.scale > 0, theta / shape.scale, 0.0)
    return max(
        float(part.norm() / (weight.norm() / theta.norm()))
        for part, weight in zip(u.split(list(shape.layout.sizes)), theta.split(list(shape.layout.sizes)), strict=True)
    )


@pytest.mark.parametrize(("norm", "adaptive"), list(itertools.product(NORMS, ADAPTIVE)))
def test_points_lie_where_they_should(norm: str, adaptive: str) -> None:
    shape = ball(norm, adaptive)
    direction = torch.randn(shape.layout.size, dtype=torch.float64)
    assert size(shape, shape.project(5 * direction)) <= 0.3 * (1 + 1e-9)
    inside = shape.onto_boundary(direction) * 0.5
    torch.testing.assert_close(shape.project(inside), inside)
    assert size(shape, shape.onto_boundary(direction)) == pytest.approx(0.3)
    extreme = shape.extreme(direction)
    assert size(shape, extreme) == pytest.approx(0.3)
    others = torch.stack([shape.project(torch.randn_like(direction)) for _ in range(200)])
    assert (others @ direction).max() <= extreme @ direction + 1e-12
    assert float(shape.extreme(torch.zeros_like(direction)).norm()) == 0


def test_a_layerwise_ball_leaves_a_tensor_of_zeros_where_it_is() -> None:
    model = small_network()
    with torch.no_grad():
        model[2].bias.zero_()
    x, y = next(iter(network_risk().batches))
    risk = EmpiricalRisk(model, [(x, y)])
    shape = ball_around(risk, 0.3, norm="layerwise", adaptive="none", relative=False, subspace=None)
    direction = torch.randn(risk.num_params, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = shape.onto_boundary(direction)
    torch.testing.assert_close(shape.project(start), start)
    result = worst_case_sharpness(risk, 0.3, norm="layerwise", starts={"random": direction}, steps=4, max_passes=1)
    assert bool((risk.layout.split(result.epsilon)["2.bias"] == 0).all())
    torch.testing.assert_close(shape.project(result.epsilon), result.epsilon)


@pytest.mark.parametrize("adaptive", ADAPTIVE)
def test_angles_and_noise_are_those_of_the_balls_own_coordinates(adaptive: str) -> None:
    """Whatever the weights' scale: noise comes from the coordinates, and angles are measured there."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, network_risk().num_params, dtype=torch.float64, generator=generator)
    expected = float(one @ other / (one.norm() * other.norm()))
    for scale in (1.0, 10.0):
        shape = ball_around(network_risk(scale), 0.3, norm="l2", adaptive=adaptive, relative=False, subspace=None)
        assert shape.cosine(shape.perturbation(one), shape.perturbation(other)) == pytest.approx(expected, rel=1e-9)
    assert shape.cosine(one, torch.zeros_like(one)) == 0.0


def test_the_extreme_point_maximises_a_linear_function() -> None:
    """Against scipy's general solver, on the adaptive l2 ball."""
    shape = ball("l2", "filter")
    gradient = torch.randn(shape.layout.size, dtype=torch.float64)
    scale = shape.scale.numpy()
    free = scale > 0
    found = minimize(
        lambda u: -(gradient.numpy()[free] * scale[free]) @ u,
        np.full(free.sum(), 1e-3),
        constraints={"type": "ineq", "fun": lambda u: 0.09 - u @ u},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert -found.fun == pytest.approx(float(gradient @ shape.extreme(gradient)), rel=1e-6)


@pytest.mark.parametrize("adaptive", ["elementwise", "filter"])
@pytest.mark.parametrize("norm", NORMS)
def test_adaptive_balls_do_not_see_layer_rescaling(norm: str, adaptive: str) -> None:
    if norm == "layerwise":
        pytest.skip("its shares follow the layers' norms")
    plain, scaled = network_risk(), network_risk(10.0)
    assert plain.loss() == pytest.approx(scaled.loss(), rel=1e-12)
    rises = [worst_case_sharpness(risk, 0.2, norm=norm, adaptive=adaptive, steps=15).rise for risk in (plain, scaled)]
    assert rises[0] == pytest.approx(rises[1], rel=1e-6)
    fixed = [worst_case_sharpness(risk, 0.2, norm=norm, steps=15).rise for risk in (plain, scaled)]
    assert fixed[1] > 1.5 * fixed[0]


def test_linf_on_a_quadratic_is_found_among_the_corners() -> None:
    """A convex function takes its maximum over a box at a corner."""
    risk, gradient, hessian = quadratic_risk([5.0, 2.0, 1.0, 0.5])
    corners = 0.4 * np.array(list(itertools.product([-1, 1], repeat=4)))
    exact = max(gradient @ c + 0.5 * c @ hessian @ c for c in corners)
    starts = {f"corner {i}": torch.tensor(c) for i, c in enumerate(corners)}
    result = worst_case_sharpness(risk, 0.4, norm="linf", starts=starts)
    assert result.rise == pytest.approx(exact, rel=1e-9)


def test_a_box_of_a_linear_function() -> None:
    """The largest value of gᵀe in a box is rho ‖g‖₁."""
    risk, gradient, _ = quadratic_risk([0.0, 0.0, 0.0])
    assert worst_case_sharpness(risk, 0.4, norm="linf").rise == pytest.approx(0.4 * np.abs(gradient).sum())


def test_relative_radii_grow_with_the_weights() -> None:
    risk = network_risk()
    norm = float(risk.theta.norm())
    relative = worst_case_sharpness(risk, 0.01, relative=True, steps=5)
    assert relative.rho == pytest.approx(0.01 * norm)
    assert relative.rise == worst_case_sharpness(risk, 0.01 * norm, steps=5).rise


def test_layerwise_lies_inside_the_l2_ball() -> None:
    risk = network_risk()
    layerwise = worst_case_sharpness(risk, 0.5, norm="layerwise", steps=30)
    assert layerwise.epsilon.norm() <= 0.5 * (1 + 1e-9)
    assert 0 < layerwise.rise <= worst_case_sharpness(risk, 0.5, steps=60, restarts=3).rise * (1 + 1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "norm"),
        ({"adaptive": "rows"}, "adaptive"),
        ({"norm": "linf", "subspace": torch.eye(51, 2, dtype=torch.float64)}, "subspace"),
        ({"adaptive": "filter", "subspace": torch.eye(51, 2, dtype=torch.float64)}, "subspace"),
        ({"adaptive": "filter", "relative": True}, "relative"),
        ({"starts": {"mine": torch.ones(3)}}, "'mine'"),
        ({"starts": {"mine": torch.full((51,), math.nan)}}, "starts"),
    ],
)
def test_bad_requests_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        worst_case_sharpness(network_risk(), 0.1, **options)
    with pytest.raises(ValueError, match="rhos"):
        sharpness_curve(network_risk(), [])


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-12, 1.0, 1e25])
def test_vectors_of_any_size_have_a_direction(size: float) -> None:
    """Their squares leave float32's range, and a plain sum over so many entries loses digits."""
    torch.manual_seed(1)
    sphere = ball_around(EmpiricalRisk(nn.Linear(1000, 70, bias=False), [(torch.ones(1, 1000), torch.zeros(1).long())]),
                         0.1, norm="l2", adaptive="none", relative=False, subspace=None)  # fmt: skip
    vectors = torch.randn(3, 70_000) * size
    vectors[1] = 0
    exact = vectors.double() / vectors.double().norm(dim=1, keepdim=True)
    exact[1] = 0
    for found in (sphere.ascent_direction(vectors), sphere.onto_boundary(vectors) / 0.1):
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-9)
    inside = sphere.project(vectors)
    expected = exact * vectors.double().norm(dim=1, keepdim=True).clamp(max=0.1)
    torch.testing.assert_close(inside.double(), expected, rtol=1e-6, atol=1e-12)


def test_filters_of_transposed_weights_are_their_output_units() -> None:
    """GPT-2's Conv1D computes x W + b with W (in, out): its units are columns, and so is all that goes by filter."""
    torch.manual_seed(0)
    plain, turned = nn.Linear(4, 6).double(), Conv1D(6, 4).double()
    turned.weight.data, turned.bias.data = plain.weight.data.T.clone(), plain.bias.data.clone()
    x, y = torch.randn(20, 4).double(), torch.randint(0, 6, (20,))
    plain_risk, turned_risk = EmpiricalRisk(plain, [(x, y)]), EmpiricalRisk(turned, [(x, y)])
    assert turned_risk.layout.transposed == {"weight"} and not plain_risk.layout.transposed

    def turn(vector: Tensor) -> Tensor:
        parts = plain_risk.layout.split(vector)
        return turned_risk.layout.join({"weight": parts["weight"].T, "bias": parts["bias"]})

    balls = [ball_around(r, 0.3, norm="l2", adaptive="filter", relative=False, subspace=None)
             for r in (plain_risk, turned_risk)]  # fmt: skip
    torch.testing.assert_close(balls[1].scale, turn(balls[0].scale))
    direction = torch.randn(plain_risk.num_params).double()
    normalised = filter_normalize(direction, plain_risk.theta, plain_risk.layout)
    found = filter_normalize(turn(direction), turned_risk.theta, turned_risk.layout)
    torch.testing.assert_close(found, turn(normalised))
    rises = [
        worst_case_sharpness(r, 0.3, adaptive="filter", restarts=1, steps=30).rise for r in (plain_risk, turned_risk)
    ]
    assert rises[0] == pytest.approx(rises[1], rel=1e-6)
    transposed = EmpiricalRisk(nn.Sequential(nn.ConvTranspose2d(3, 2, 2), nn.Flatten()).double(),
                               [(torch.randn(2, 3, 1, 1).double(), torch.tensor([0, 1]))])  # fmt: skip
    assert transposed.layout.filter_norms(transposed.theta)["0.weight"][0, :, 0, 0].unique().numel() == 2
