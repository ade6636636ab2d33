"""Costs of a step against what can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.utils import ModelOutput

from analyses.measures.method_step import MethodStep
from bilora import METHODS, build_method
from tests.bilora.conftest import config_of


class Regression(nn.Module):
    """One 64×64 layer under a squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64, bias=False)

    def forward(self, x: torch.Tensor) -> ModelOutput:
        return ModelOutput(loss=self.layer(x).square().mean())


def step_of(method: str) -> MethodStep:
    config = config_of(method, r=4, rho=0.1, target_modules=["layer"])
    return MethodStep(build_method(Regression(), config, seed=0), {"x": torch.randn(32, 64)}, lr=1e-3)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_passes_are_counted(method: str) -> None:
    assert step_of(method).passes() == METHODS[method].passes_per_step


def test_bytes_of_weights_and_optimizer_state() -> None:
    lora, bilora = step_of("lora"), step_of("bilora")
    assert lora.parameter_bytes() == 4 * (64 * 64 + 2 * 4 * 64)
    assert bilora.parameter_bytes() - lora.parameter_bytes() == 4 * 2 * 4 * 64
    # AdamW: two moments a weight and one step count a tensor.
    assert lora.optimizer_bytes() == 4 * (2 * 2 * 4 * 64 + 2)
    assert bilora.optimizer_bytes() == 2 * lora.optimizer_bytes()


def test_flops_of_a_full_step_are_those_of_its_products() -> None:
    """Forward X W and the weight's gradient: 2·32·64·64 each; the input needs no gradient."""
    assert step_of("full").flops() == 2 * 2 * 32 * 64 * 64
    assert step_of("sam").flops() == 2 * step_of("full").flops()


def test_saved_activations_are_counted_once() -> None:
    """The layer keeps its input, the square its output."""
    assert step_of("full").saved_bytes() == 2 * 4 * 32 * 64


def test_peak_holds_the_gradients() -> None:
    step = step_of("full")
    assert step.peak_bytes() >= step.parameter_bytes() + step.optimizer_bytes() + 4 * 64 * 64
