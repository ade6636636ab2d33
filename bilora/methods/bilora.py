"""Bi-LoRA (arXiv 2508.19564) and the two controls that share its auxiliary adapter."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bilora.adapters import (
    AUXILIARY,
    PRIMARY,
    Factors,
    adapter_factors,
    adapter_norm,
    attach_adapter,
    clip_adapter,
    scale_adapter,
)
from bilora.methods.base import Backward, Method, attach_primary


class BiLora(Method):
    r"""Primary descends, auxiliary ascends, both from one pass at the merged point.

    With :math:`W_j = W^0_j + s_1B_{1j}A_{1j} + s_2B_{2j}A_{2j}` and one gradient of L there,

    .. math::
        (A_1,B_1) &\leftarrow \mathrm{step}_{\eta_1}\big((A_1,B_1), +\nabla_{A_1,B_1}L\big)\\
        (A_2,B_2) &\leftarrow \mathrm{step}_{\eta_2}\big((A_2,B_2), -\nabla_{A_2,B_2}L\big)\\
        c &= \big(\textstyle\sum_j\|s_2B_{2j}A_{2j}\|_F^2\big)^{1/2};\quad
        \text{if } c>\rho:\ (A_2,B_2)\leftarrow\sqrt{\rho/c}\,(A_2,B_2)

    where step is the optimizer's update with its own state for each module. B2 starts at zero. The auxiliary takes no
    weight decay and is dropped at the end: the result is :math:`W^0 + s_1B_1A_1`.
    """

    name = "bilora"
    summary = "Bi-LoRA: primary descends, auxiliary ascends, one pass"
    ascends: ClassVar[bool] = True

    def prepare(self, model: nn.Module) -> nn.Module:
        peft_model = attach_adapter(
            attach_primary(model, self.config, seed=self.seed),
            AUXILIARY,
            r=self.config.auxiliary_rank,
            alpha=self.config.auxiliary_lora_alpha,
            target_modules=self.config.target_modules,
            seed=self.seed,
        )
        self.auxiliary: dict[str, Factors] = adapter_factors(peft_model, AUXILIARY)
        self.primary: dict[str, Factors] = adapter_factors(peft_model, PRIMARY)
        return peft_model

    def primary_parameters(self) -> list[nn.Parameter]:
        return _parameters(self.primary)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [
            *super().parameter_groups(learning_rate),
            {
                "params": _parameters(self.auxiliary),
                "lr": self.config.auxiliary_lr or learning_rate,
                "maximize": self.ascends,
                "weight_decay": 0.0,
            },
        ]

    def after_step(self) -> None:
        clip_adapter(self.auxiliary, self.config.rho, self.config.clip)


class DualLora(BiLora):
    """Control: both modules descend, the same clip; the auxiliary is dropped at the end as in Bi-LoRA."""

    name = "dual_lora"
    summary = "control: Bi-LoRA with the auxiliary descending"
    ascends = False


class RandomAuxiliary(BiLora):
    """Control: the auxiliary is drawn anew at every step and scaled to norm rho; only the primary is trained."""

    name = "random_aux"
    summary = "control: Bi-LoRA with a random auxiliary at every step"

    def prepare(self, model: nn.Module) -> nn.Module:
        peft_model = super().prepare(model)
        self._generator = torch.Generator().manual_seed(self.seed)
        for pair in self.auxiliary.values():
            pair.A.requires_grad_(False)
            pair.B.requires_grad_(False)
        return peft_model

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return Method.parameter_groups(self, learning_rate)

    def gradient(self, backward: Backward) -> Tensor:
        with torch.no_grad():
            for pair in self.auxiliary.values():
                for factor in (pair.A, pair.B):
                    factor.copy_(torch.randn(factor.shape, generator=self._generator))
        norm = adapter_norm(self.auxiliary.values())
        scale_adapter(self.auxiliary.values(), self.config.rho / norm)
        return backward()

    def after_step(self) -> None:
        """Nothing: the auxiliary already has norm rho."""


def _parameters(factors: dict[str, Factors]) -> list[nn.Parameter]:
    return [factor for pair in factors.values() for factor in (pair.A, pair.B)]  # type: ignore[misc]
