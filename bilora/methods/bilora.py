"""Bi-LoRA (arXiv 2508.19564) and the two controls that share its auxiliary adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from bilora.adapters import AUXILIARY, PRIMARY, Factors, activate, adapter_factors, only_adapters
from bilora.attaching import (
    attach_auxiliary,
    attach_auxiliary_alone,
    attach_ia3,
    attach_primary,
    redraw_dead,
)
from bilora.clipping import adapter_norm, clip_adapter, scale_adapter
from bilora.config import Primary
from bilora.methods.base import ADAPTER, BALL, Backward, Method, gradients_of
from bilora.perturbing import buffers_kept, devices_of


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

    With a factor shared, the auxiliary's is a copy of the primary's after every step, the other one learns, and the
    clip multiplies that one by rho/c. A ball of radius 0 holds no auxiliary: it stays off. Weights trained beside the
    primary (``modules_to_save``) descend with it. With ``primary="full"`` what the model trains is the primary, and
    the result is that model; with ``"ia3"`` it is PEFT's IA3.

    Attributes:
        ascends: Whether the auxiliary goes up.
        learns_auxiliary: Whether the optimizer moves the auxiliary.
        primary: The primary's factors by layer; empty where all weights descend.
        auxiliary: The auxiliary's factors by layer.
        clip_scale: What the last clip multiplied the auxiliary's products by.
    """

    name = "bilora"
    summary = "Bi-LoRA: primary descends, auxiliary ascends, one pass"
    uses: ClassVar[frozenset[str]] = (
        ADAPTER | BALL | {"auxiliary_r", "auxiliary_alpha", "auxiliary_lr", "clip", "share", "match_gradients"}
    )
    fits = get_args(Primary)
    ascends: ClassVar[bool] = True
    learns_auxiliary: ClassVar[bool] = True

    def prepare(self, model: nn.Module) -> nn.Module:
        if self.config.primary == "full":
            peft_model = attach_auxiliary_alone(model, self.config, seed=self.seed)
        elif self.config.primary == "ia3":
            peft_model = attach_auxiliary_alone(attach_ia3(model, self.config), self.config, seed=self.seed)
        else:
            peft_model = attach_primary(model, self.config, seed=self.seed)
            attach_auxiliary(peft_model, self.config, seed=self.seed)
        self.auxiliary: dict[str, Factors] = adapter_factors(peft_model, AUXILIARY)
        self.primary: dict[str, Factors] = adapter_factors(peft_model, PRIMARY)
        self.clip_scale = torch.ones(())
        self._num_clipped: Tensor | float = 0.0
        self._share_factor()
        self.model = self.peft_model = peft_model
        self.engage()
        return peft_model

    def primary_parameters(self) -> list[nn.Parameter]:
        auxiliary = {id(factor) for pair in self.auxiliary.values() for factor in (pair.A, pair.B)}
        return [p for p in super().primary_parameters() if id(p) not in auxiliary]

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """Factors of the auxiliary that the optimizer moves."""
        named = [(name, getattr(pair, name)) for pair in self.auxiliary.values() for name in ("A", "B")]
        return [factor for name, factor in named if name != self.config.share]

    def parameter_groups(self, learning_rate: float | None = None) -> list[dict[str, Any]]:
        rate = self.config.auxiliary_lr or learning_rate
        auxiliary: dict[str, Any] = {"params": self.auxiliary_parameters(), "weight_decay": 0.0}
        return [*super().parameter_groups(learning_rate), auxiliary | ({} if rate is None else {"lr": rate})]

    @torch.no_grad()
    def before_step(self) -> None:
        if self.config.match_gradients:
            wanted, have = (
                torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
                for parameters in (self.primary_parameters(), self.auxiliary_parameters())
            )
            scale = torch.where(have > 0, wanted / have, torch.ones_like(have))
            for parameter in self.auxiliary_parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        self._turn_around()

    def _turn_around(self) -> None:
        """Ascend: the optimizer, whichever it is, descends along the negated gradient."""
        if self.ascends:
            for parameter in self.auxiliary_parameters():
                if parameter.grad is not None:
                    parameter.grad.neg_()

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        self.settle_auxiliary()
        self._num_clipped += (self.clip_scale < 1).double().mean()

    @torch.no_grad()
    def settle_auxiliary(self) -> None:
        """Put an auxiliary that the optimizer has moved back into the ball."""
        self._turn_around()
        self._share_factor()
        self.clip_scale = clip_adapter(self.auxiliary, self.rho, self.config.clip, shared=self.config.share)

    @torch.no_grad()
    def _share_factor(self) -> None:
        for layer, pair in self.auxiliary.items():
            if self.config.share == "A":
                pair.A.copy_(self.primary[layer].A)
            elif self.config.share == "B":
                pair.B.copy_(self.primary[layer].B)

    def ascent_gradients(self, backward: Callable[[], Tensor]) -> dict[int, Tensor]:
        """Gradients of a pass for the ascent, by the weights' ids; .grad, buffers and random numbers stay."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        devices = devices_of(self.model.parameters())
        with torch.random.fork_rng(devices=devices), buffers_kept(self.model), self.ascending():
            _, gradients = gradients_of(backward, trained)
        return {id(p): gradient for p, gradient in zip(trained, gradients, strict=True)}

    def deployed(self) -> AbstractContextManager[None]:
        return only_adapters(self.model, self._deployed_adapters())

    def _deployed_adapters(self) -> list[str]:
        return [PRIMARY] if self.primary else []

    def deploy(self) -> None:
        activate(self.peft_model, self._deployed_adapters())

    def engage(self) -> None:
        """Take up training; with a ball that holds no auxiliary, it stays off."""
        holds_one = self.config.rho > 0 or self.config.clip == "none"
        activate(self.peft_model, [*self._deployed_adapters(), *([AUXILIARY] if holds_one else [])])
        for pair in self.auxiliary.values():
            for name in ("A", "B"):
                learned = self.learns_auxiliary and holds_one and name != self.config.share
                getattr(pair, name).requires_grad_(learned)

    def restart(self) -> None:
        super().restart()
        self._num_clipped = 0.0
        redraw_dead(self.auxiliary, seed=self.seed)  # as a radius that ends at 0 leaves them

    def state(self) -> dict[str, float]:
        return {"num_clipped": float(self._num_clipped)}

    def load_state(self, state: Mapping[str, float]) -> None:
        self._num_clipped = state.get("num_clipped", 0.0)

    def metrics(self) -> dict[str, float]:
        return {
            "auxiliary_norm": float(adapter_norm(self.auxiliary.values())),
            "clip_rate": float(self._num_clipped) / max(1, self.step),
        }


class DualLora(BiLora):
    """Control: both modules descend, the same clip; the auxiliary is dropped at the end as in Bi-LoRA."""

    name = "dual_lora"
    summary = "control: Bi-LoRA with the auxiliary descending"
    ascends = False


class RandomAuxiliary(BiLora):
    """Control: the auxiliary is drawn anew for every step and scaled to norm rho; only the primary is trained.

    The draw depends on the seed and the number of the step alone.
    """

    name = "random_aux"
    summary = "control: Bi-LoRA with a random auxiliary at every step"
    uses: ClassVar[frozenset[str]] = ADAPTER | BALL | {"auxiliary_r", "auxiliary_alpha"}
    learns_auxiliary = False

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        return []

    def parameter_groups(self, learning_rate: float | None = None) -> list[dict[str, Any]]:
        return Method.parameter_groups(self, learning_rate)

    @torch.no_grad()
    def gradient(self, backward: Backward) -> Tensor:
        generator = torch.Generator().manual_seed(2**32 * self.seed + self.step)
        for pair in self.auxiliary.values():
            for factor in (pair.A, pair.B):
                factor.copy_(torch.randn(factor.shape, generator=generator))
        pairs = list(self.auxiliary.values())
        scale_adapter(pairs, self.rho / adapter_norm(pairs))
        with torch.enable_grad():
            return backward()

    def before_step(self) -> None:
        """Nothing: the auxiliary has no gradient."""

    def after_step(self) -> None:
        Method.after_step(self)
