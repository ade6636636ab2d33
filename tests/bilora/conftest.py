"""A small classifier in float64 and a way to run one method's step on it by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilora import METHODS, BiLoraConfig, Method, build_method
from bilora.parts import first_examples


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    return model.double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(7, 6, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0])


TARGETS = ["0", "2"]


def config_of(method: str, **settings: Any) -> BiLoraConfig:
    """Settings for a method: those that it uses."""
    return BiLoraConfig(method=method, **{key: v for key, v in settings.items() if key in METHODS[method].uses})


def make_method(network: nn.Module, name: str, seed: int = 0, **settings: object) -> Method:
    config = config_of(name, r=2, alpha=6.0, target_modules=TARGETS, **settings)
    method = build_method(copy.deepcopy(network), config, seed=seed)
    method.model.double()
    return method


def backward_of(method: Method, batch: tuple[Tensor, Tensor]) -> Callable[..., Tensor]:
    def backward(fraction: float = 1.0) -> Tensor:
        part = first_examples({"x": batch[0], "y": batch[1]}, fraction)
        loss = F.cross_entropy(method.model(part["x"]), part["y"])
        loss.backward()
        return loss.detach()

    return backward


def one_step(
    method: Method,
    batch: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    lr: float = 0.1,
) -> torch.optim.Optimizer:
    optimizer = optimizer or torch.optim.SGD(method.parameter_groups(lr))
    method.gradient(backward_of(method, batch))
    method.before_step()
    optimizer.step()
    method.after_step()
    optimizer.zero_grad()
    return optimizer


def merged_loss(network: nn.Module, batch: tuple[Tensor, Tensor], deltas: dict[str, Tensor]) -> Tensor:
    """Loss of the plain network with weight changes added: written without adapters."""
    hidden = batch[0]
    for name, layer in network.named_children():
        if isinstance(layer, nn.Linear):
            hidden = F.linear(hidden, layer.weight.detach() + deltas.get(name, 0.0), layer.bias.detach())
        else:
            hidden = torch.tanh(hidden)
    return F.cross_entropy(hidden, batch[1])
