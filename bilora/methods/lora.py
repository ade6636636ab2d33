"""LoRA (Hu et al. 2021, arXiv 2106.09685), and the control with Bi-LoRA's number of parameters."""

from __future__ import annotations

from torch import nn

from bilora.attaching import attach_ia3, attach_primary
from bilora.config import BiLoraConfig
from bilora.methods.base import Method


class Lora(Method):
    """Descent on the factors A, B of one adapter, or on IA3's scales (Liu et al. 2022, arXiv 2205.05638)."""

    name = "lora"
    summary = "LoRA at rank r"
    fits = (*Method.fits, "ia3")

    @classmethod
    def check(cls, config: BiLoraConfig) -> None:
        super().check(config)
        asked = sorted({"r", "alpha"} & config.model_fields_set)
        if config.primary == "ia3" and asked:
            raise ValueError(
                f"{', '.join(asked)}: IA3 has neither rank nor alpha; expected none, got "
                + ", ".join(f"{name}={getattr(config, name)!r}" for name in asked)
            )

    def prepare(self, model: nn.Module) -> nn.Module:
        if self.config.primary == "ia3":
            return attach_ia3(model, self.config)
        return attach_primary(model, self.config, seed=self.seed)


class LoraDoubleRank(Method):
    """LoRA at rank 2r with the same scaling: Bi-LoRA's parameter count without its ascent."""

    name = "lora_2r"
    summary = "control: LoRA at rank 2r, Bi-LoRA's parameter count"

    def prepare(self, model: nn.Module) -> nn.Module:
        return attach_primary(model, self.config, seed=self.seed, rank_factor=2)
