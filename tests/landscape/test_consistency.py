"""Second derivatives that autograd gets wrong are noticed by every operator, and right ones are left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from landscape import EmpiricalFisherOperator, EmpiricalRisk, GGNOperator, HessianOperator, estimate_trace

OPERATORS = [HessianOperator, GGNOperator, EmpiricalFisherOperator]


class CubeOnce(torch.autograd.Function):
    """x³ with a right first derivative that forgets where it came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * ctx.x**2 * gradient


class CubeRight(torch.autograd.Function):
    """x³ with a backward made of differentiable operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class CubeLost(CubeRight):
    """x³ whose backward detaches the gradient, so that all beyond it is constant."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return CubeRight.backward(ctx, gradient).detach()


class Cubed(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


def risk_of(layer: nn.Module, dtype: torch.dtype = torch.float64) -> EmpiricalRisk:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(6, 3)).to(dtype)
    return EmpiricalRisk(model, [(torch.randn(12, 4, dtype=dtype), torch.randint(0, 3, (12,)))])


@pytest.mark.parametrize("function", [CubeOnce, CubeLost])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrong_second_derivatives_are_refused(function: type[torch.autograd.Function], dtype: torch.dtype) -> None:
    risk = risk_of(Cubed(function), dtype)
    with pytest.raises(ValueError, match="second derivatives are not those of its first ones"):
        HessianOperator(risk)
    with pytest.raises(ValueError, match="check=False"):
        estimate_trace(HessianOperator(risk))
    HessianOperator(risk, check=False)


def test_torchs_own_weight_normalisation_is_refused() -> None:
    """Its fused kernel's double backward is wrong (torch 2.13): 29 % off here."""
    with pytest.raises(ValueError, match="parametrised layer"):
        HessianOperator(risk_of(weight_norm(nn.Linear(6, 6))))


def test_jacobians_through_a_lost_graph_are_refused() -> None:
    """Products with the Jacobian take a second backward pass, too."""
    for kind in (GGNOperator, EmpiricalFisherOperator):
        with pytest.raises(ValueError, match="second derivatives"):
            kind(risk_of(Cubed(CubeLost)))


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(),
        nn.GELU(),
        nn.LayerNorm(6),
        Cubed(CubeRight),
        spectral_norm(nn.Linear(6, 6)),
        orthogonal(nn.Linear(6, 6)),
        nn.Sequential(nn.Linear(6, 2_000), nn.ReLU(), nn.Linear(2_000, 6)),
    ],
    ids=["relu", "gelu", "layer norm", "cube", "spectral norm", "orthogonal", "many kinks"],
)
def test_right_second_derivatives_pass(layer: nn.Module, kind: type, dtype: torch.dtype) -> None:
    risk = risk_of(layer, dtype)
    kind(risk)
    assert (kind, risk.layout.names) in risk.consistent


def test_it_is_asked_once() -> None:
    risk = risk_of(nn.Tanh())
    HessianOperator(risk)
    assert risk.select("0").consistent is risk.consistent and risk.on(risk.batches).consistent is risk.consistent
