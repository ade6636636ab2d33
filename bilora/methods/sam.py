"""Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412) over three spaces of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bilora.adapters import adapted_layers
from bilora.methods.base import Backward, Method, attach_primary, gradients_of
from landscape.perturbation import perturbed


class Sam(Method):
    r"""SAM on all weights: the gradient is taken at :math:`\theta + \rho\,g/\|g\|`."""

    name = "sam"
    summary = "full fine-tuning with SAM on all weights"
    passes_per_step = 2

    def prepare(self, model: nn.Module) -> nn.Module:
        return model.requires_grad_(True)

    def perturbed_parameters(self) -> list[nn.Parameter]:
        """Weights that the perturbation moves."""
        return self.primary_parameters()

    def gradient(self, backward: Backward) -> Tensor:
        moved = self.perturbed_parameters()
        epsilons = self.first_pass(backward, moved)
        with perturbed(moved, epsilons):
            return backward()

    def first_pass(self, backward: Backward, moved: Sequence[nn.Parameter]) -> list[Tensor]:
        r"""The perturbation :math:`\rho\,g/\|g\|` from one pass at the weights themselves."""
        affected = list(dict.fromkeys([*moved, *self.primary_parameters()]))
        _, gradients = gradients_of(backward, affected)
        return scaled_to(self.config.rho, gradients[: len(moved)])


class LoraSam(Sam):
    r"""SAM on the factors only: :math:`\rho\,(g_A, g_B)/\|(g_A, g_B)\|`."""

    name = "lora_sam"
    summary = "LoRA with SAM on the factors A and B"

    def prepare(self, model: nn.Module) -> nn.Module:
        return attach_primary(model, self.config, seed=self.seed)


class LoraSamFull(LoraSam):
    r"""LoRA with SAM's perturbation in the full space: :math:`\epsilon_j = \rho\,G_j/\|G\|` on the merged weights.

    :math:`G_j`, the gradient at layer j's merged weight, is the gradient of the frozen base weight, to which the
    adapter's product is added. It costs an out×in gradient and copy per layer: a yardstick for small models.
    """

    name = "lora_sam_full"
    summary = "LoRA with SAM's perturbation of the merged weights (yardstick)"

    def perturbed_parameters(self) -> list[nn.Parameter]:
        return [layer.get_base_layer().weight for layer in adapted_layers(self.model).values()]

    def first_pass(self, backward: Backward, moved: Sequence[nn.Parameter]) -> list[Tensor]:
        for weight in moved:
            weight.requires_grad_(True)
        try:
            affected = list(moved) + [p for p in self.primary_parameters() if not _contains(moved, p)]
            _, gradients = gradients_of(backward, affected)
        finally:
            for weight in moved:
                weight.requires_grad_(False)
        return scaled_to(self.config.rho, gradients[: len(moved)])


def scaled_to(rho: float, gradients: Sequence[Tensor]) -> list[Tensor]:
    r"""Gradients scaled together to norm rho; a zero gradient gives a zero perturbation."""
    norm = torch.stack(torch._foreach_norm(list(gradients))).norm()
    factor = torch.where(norm > 0, rho / norm, torch.zeros_like(norm))
    return [gradient * factor for gradient in gradients]


def _contains(tensors: Sequence[Tensor], tensor: Tensor) -> bool:
    return any(tensor is other for other in tensors)
