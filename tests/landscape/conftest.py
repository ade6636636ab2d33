"""A real tiny vision transformer on real digits, and a quadratic behind the risk's interface."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

ENCODER = r"layers\.\d+\..*(q_proj|v_proj|fc1)\.weight$"


def tiny_vit(attention: str = "sdpa") -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        num_labels=10,
        attn_implementation=attention,
    )
    model = ViTForImageClassification(config)
    for parameter in model.parameters():  # large weights: a Hessian with something in it
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture
def vit() -> ViTForImageClassification:
    return tiny_vit()


@pytest.fixture
def digit_batches() -> list[dict[str, Tensor]]:
    """30 digits in batches of 12, 12 and a ragged 6."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images[:30] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    targets = torch.tensor(labels[:30])
    return [{"pixel_values": p, "labels": t} for p, t in zip(pixels.split(12), targets.split(12), strict=True)]


class Quadratic(nn.Module):
    """L(w) = gᵀw + ½wᵀHw as a model: its output is the loss of every example."""

    def __init__(self, gradient: Tensor, hessian: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros_like(gradient))
        self.gradient, self.hessian = gradient, hessian

    def forward(self, inputs: Tensor) -> Tensor:
        value = self.gradient @ self.w + 0.5 * self.w @ self.hessian @ self.w
        return value.expand(len(inputs))
