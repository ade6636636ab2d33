"""Full fine-tuning: every weight descends."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from bilora.methods.base import Method, trained_as_they_are


class FullFineTuning(Method):
    """Descent on all weights of the model that are not frozen."""

    name = "full"
    summary = "full fine-tuning of all weights"
    uses: ClassVar[frozenset[str]] = frozenset()

    def prepare(self, model: nn.Module) -> nn.Module:
        return trained_as_they_are(model, self.name)
