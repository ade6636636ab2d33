"""Full fine-tuning: every weight descends."""

from __future__ import annotations

from torch import nn

from bilora.methods.base import Method


class FullFineTuning(Method):
    """Descent on all weights of the model."""

    name = "full"
    summary = "full fine-tuning of all weights"

    def prepare(self, model: nn.Module) -> nn.Module:
        return model.requires_grad_(True)
