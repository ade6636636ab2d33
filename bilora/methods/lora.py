"""LoRA (Hu et al. 2021, arXiv 2106.09685), and the control with Bi-LoRA's number of parameters."""

from __future__ import annotations

from torch import nn

from bilora.attaching import attach_primary
from bilora.methods.base import Method


class Lora(Method):
    """Descent on the factors A, B of one adapter."""

    name = "lora"
    summary = "LoRA at rank r"

    def prepare(self, model: nn.Module) -> nn.Module:
        return attach_primary(model, self.config, seed=self.seed)


class LoraDoubleRank(Method):
    """LoRA at rank 2r with the same scaling: Bi-LoRA's parameter count without its ascent."""

    name = "lora_2r"
    summary = "control: LoRA at rank 2r, Bi-LoRA's parameter count"

    def prepare(self, model: nn.Module) -> nn.Module:
        return attach_primary(model, self.config, seed=self.seed, rank_factor=2)
