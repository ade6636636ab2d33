"""The rungs between full-space SAM and Bi-LoRA, each with one difference: the rank, the lag, the inner ascent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from bilora.adapters import PRIMARY, adapted_layers, adapter_factors
from bilora.gradients import StepGradients
from bilora.methods.base import ADAPTER, BALL, Backward
from bilora.methods.bilora import BiLora
from bilora.methods.sam import LoraSamFull, scaled_to
from landscape.distributed import Ranks


class LoraSamRank(LoraSamFull):
    r"""Full-space SAM with its perturbation cut to rank r: :math:`\epsilon_j=\rho\,G_j^{(r)}/\|G^{(r)}\|`.

    :math:`G_j^{(r)}` is the best approximation of rank r of layer j's gradient (its r largest singular values; Eckart
    and Young 1936), with r the ``auxiliary_r`` or the primary's rank. Two passes and a singular value decomposition of
    every layer's gradient a step: a yardstick for small models.
    """

    name = "lora_sam_rank"
    summary = "LoRA with full-space SAM's perturbation cut to rank r (yardstick)"
    uses: ClassVar[frozenset[str]] = ADAPTER | BALL | {"auxiliary_r"}

    @torch.no_grad()
    def direction(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        factors = adapter_factors(self.model, PRIMARY)
        return {
            name: _best_of_rank(self.config.auxiliary_r or factors[name].A.shape[0], gradient)
            for name, gradient in gradients.items()
        }


def _best_of_rank(r: int, matrix: Tensor) -> Tensor:
    if not bool(torch.isfinite(matrix).all()):  # an overflow under a loss scale; it gives no perturbation
        return matrix
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left[:, :r] * values[:r]) @ right[:r]


class LoraSamLag(LoraSamFull):
    r"""Full-space SAM whose perturbation is a step old: :math:`\epsilon_j=\rho\,G_{j,t-1}/\|G_{t-1}\|`; one pass.

    :math:`G_{t-1}` is the gradient at the merged weights that the last step took at its own perturbed point, over all
    its micro-batches and ranks; the first step has no perturbation. One out×in gradient per layer is kept from step to
    step, also in checkpoints: a yardstick for small models.
    """

    name = "lora_sam_lag"
    summary = "LoRA with full-space SAM's perturbation from the last step's gradient (yardstick)"
    passes_per_step = 1
    uses: ClassVar[frozenset[str]] = ADAPTER | BALL

    def prepare(self, model: nn.Module) -> nn.Module:
        self._last: dict[str, Tensor] = {}
        return super().prepare(model)

    def begin_step(self) -> None:
        super().begin_step()
        self._step = StepGradients(self)

    def gradient(self, backward: Backward) -> Tensor:
        shapes = {name: (layer.out_features, layer.in_features) for name, layer in adapted_layers(self.model).items()}
        device = next(self.model.parameters()).device
        last = [self._last[name] if name in self._last else torch.zeros(shapes[name], device=device) for name in shapes]
        with self._step, self.moved_by(scaled_to(self.rho, last)):
            return backward()

    def after_step(self) -> None:
        self._last = self._step.of_layers()
        super().after_step()

    def restart(self) -> None:
        super().restart()
        self._last = {}

    def state_tensors(self) -> dict[str, Tensor]:
        return {f"last_gradient/{name}": gradient for name, gradient in self._last.items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        device = next(self.model.parameters()).device
        self._last = {key.removeprefix("last_gradient/"): tensor.to(device) for key, tensor in tensors.items()}


class BiLoraInner(BiLora):
    """Bi-LoRA with its inner maximum solved better: ``inner_steps`` ascents of the auxiliary before each descent.

    Each is a pass on the step's batch (the first of several micro-batches, with its own mean gradient) and an update
    of the auxiliary alone by the optimizer, then the clip; Bi-LoRA's simultaneous step follows. 1 + ``inner_steps``
    passes.
    """

    name = "bilora_inner"
    summary = "Bi-LoRA with inner_steps ascents before each descent, 1 by default"
    uses: ClassVar[frozenset[str]] = BiLora.uses - {"match_gradients", "share"} | {"inner_steps"}
    passes_per_step = 2

    def prepare(self, model: nn.Module) -> nn.Module:
        self.passes_per_step = 1 + self.config.inner_steps
        self._is_inner = False
        return super().prepare(model)

    def begin_step(self) -> None:
        self._has_ascended = False

    def gradient(self, backward: Backward) -> Tensor:
        holds_one = all(factor.requires_grad for factor in self.auxiliary_parameters())  # not in a ball of radius 0
        if holds_one and not self._has_ascended:
            for _ in range(self.config.inner_steps):
                self._ascend(backward)
            self._has_ascended = True
        return backward()

    def _ascend(self, backward: Backward) -> None:
        if self.optimizer is None:
            raise ValueError(
                "optimizer: bilora_inner moves its auxiliary by one; expected BiLoraTrainer or "
                "method_optimizer before the first step, got none"
            )
        of, ranks, moved = self.ascent_gradients(backward), Ranks(), self.auxiliary_parameters()
        scale = self.batches_per_step / (ranks.count * self.loss_scale)
        slopes = [ranks.all_sum(of[id(factor)]) * scale for factor in moved]
        if not bool(torch.stack(torch._foreach_norm(slopes)).isfinite().all()):
            return  # an overflow under a loss scale, for which the scaler skips the step
        trained = [p for p in self.model.parameters() if p.requires_grad]
        earlier = [p.grad for p in trained]
        # An optimizer passes by weights without a gradient, so that its step moves the auxiliary alone.
        for parameter in trained:
            parameter.grad = None
        for factor, slope in zip(moved, slopes, strict=True):
            factor.grad = slope
        self._is_inner = True
        try:
            self.optimizer.step()
        finally:
            self._is_inner = False
            torch.clear_autocast_cache()  # the factors have moved under an autocast around both passes
        for parameter, gradient in zip(trained, earlier, strict=True):
            parameter.grad = gradient

    def after_step(self) -> None:
        if self._is_inner:
            self.settle_auxiliary()
        else:
            super().after_step()
