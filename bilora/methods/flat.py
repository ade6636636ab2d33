"""Flat-LoRA (arXiv 2409.14396): LoRA under random perturbations of the merged weights."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from bilora.adapters import PRIMARY, adapted_layers, adapter_factors, frozen_weight
from bilora.attaching import attach_primary
from bilora.methods.base import ADAPTER, ADDED_TO_THE_WEIGHT, BALL, Backward, Method
from bilora.perturbing import layers_moved


class FlatLora(Method):
    r"""LoRA whose gradient is taken at noisy merged weights, in one pass.

    Row i of layer j gets Gaussian noise of standard deviation :math:`f(t)\,\rho\,\|W_{j,i:}\|_2/\sqrt{in_j}` with
    :math:`W = W^0 + sBA` and :math:`f(t)=\frac12(1-\cos(\pi t/T))`, which rises from 0 to 1 over training (arXiv
    2409.14396, section 3.3). The noise of a step is drawn from a seed of its own and not stored between steps; it moves
    the adapted layer alone, not other users of its frozen weight.
    """

    name = "flat_lora"
    fits = ADDED_TO_THE_WEIGHT
    summary = "LoRA under Gaussian noise on the merged weights, rising over training"
    uses: ClassVar[frozenset[str]] = ADAPTER | BALL

    needs_num_steps = True

    def prepare(self, model: nn.Module) -> nn.Module:
        return attach_primary(model, self.config, seed=self.seed)

    def gradient(self, backward: Backward) -> Tensor:
        with layers_moved(self.model, list(adapted_layers(self.model).values()), self.noise()):
            return backward()

    @torch.no_grad()
    def noise(self) -> list[Tensor]:
        """This step's noise, one (out, in) a layer, in at least float32."""
        generator = torch.Generator().manual_seed(2**32 * self.seed + self.step)
        height = self.rho * 0.5 * (1 - math.cos(math.pi * self.progress))
        factors = adapter_factors(self.model, PRIMARY)
        noise = []
        for name, layer in adapted_layers(self.model).items():
            weight = frozen_weight(layer)
            merged = weight.to(torch.promote_types(weight.dtype, torch.float32)) + factors[name].delta_weight
            rows = merged.norm(dim=1, keepdim=True) / math.sqrt(merged.shape[1])
            draw = torch.randn(merged.shape, generator=generator, dtype=torch.float32)
            noise.append(height * rows * draw.to(merged))
        return noise
