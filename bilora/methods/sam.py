"""Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412) over three spaces of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bilora.adapters import PRIMARY, adapted_layers, adapter_factors
from bilora.methods.base import ADDED_TO_THE_WEIGHT, Backward, Method, attach_primary, gradients_of
from landscape.distributed import Ranks
from landscape.perturbation import perturbed


class Sam(Method):
    r"""SAM on all weights: the gradient is taken at :math:`\theta + \rho\,g/\|g\|`.

    With ``adaptive`` it is ASAM (Kwon et al. 2021, arXiv 2102.11600, section 4): :math:`\rho\,T^2g/\|Tg\|` with
    :math:`T = |\theta| + 0.01` element by element. When gradients are accumulated, every micro-batch is perturbed by
    its own gradient, as m-sharpness has it.
    """

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
        return self.scaled(moved, gradients[: len(moved)])

    @torch.no_grad()
    def scaled(self, moved: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """The perturbation along the gradients, on the sphere of radius rho."""
        if not self.config.adaptive:
            return scaled_to(self.rho, gradients)
        sizes = [weight.abs() + 0.01 for weight in moved]
        unit = scaled_to(self.rho, [size * gradient for size, gradient in zip(sizes, gradients, strict=True)])
        return [size * direction for size, direction in zip(sizes, unit, strict=True)]


class LoraSam(Sam):
    r"""SAM on the factors only: :math:`\rho\,(g_A, g_B)/\|(g_A, g_B)\|`."""

    name = "lora_sam"
    summary = "LoRA with SAM on the factors A and B"

    def prepare(self, model: nn.Module) -> nn.Module:
        peft_model = attach_primary(model, self.config, seed=self.seed)
        self._trained = [p for p in peft_model.parameters() if p.requires_grad]
        return peft_model

    def primary_parameters(self) -> list[nn.Parameter]:
        return self._trained

    def perturbed_parameters(self) -> list[nn.Parameter]:
        factors = adapter_factors(self.model, PRIMARY).values()
        return [factor for pair in factors for factor in (pair.A, pair.B)]  # type: ignore[misc]


class LoraSamFull(LoraSam):
    r"""LoRA with SAM's perturbation in the full space: :math:`\epsilon_j = \rho\,G_j/\|G\|` on the merged weights.

    :math:`G_j`, the gradient at layer j's merged weight, is the gradient of the frozen base weight, to which the
    adapter's product is added. It costs an out×in gradient and copy per layer: a yardstick for small models.
    """

    name = "lora_sam_full"
    fits = ADDED_TO_THE_WEIGHT
    summary = "LoRA with SAM's perturbation of the merged weights (yardstick)"

    def perturbed_parameters(self) -> list[nn.Parameter]:
        return [layer.get_base_layer().weight for layer in adapted_layers(self.model).values()]

    def first_pass(self, backward: Backward, moved: Sequence[nn.Parameter]) -> list[Tensor]:
        for weight in moved:
            weight.requires_grad_(True)
        try:
            _, gradients = gradients_of(backward, [*moved, *self._trained])
        finally:
            for weight in moved:
                weight.requires_grad_(False)
        # Data-parallel wrappers average the trained weights' gradients only.
        summed = [Ranks().all_sum(gradient) for gradient in gradients[: len(moved)]]
        return self.scaled(self._merged(moved) if self.config.adaptive else moved, summed)

    @torch.no_grad()
    def _merged(self, weights: Sequence[Tensor]) -> list[Tensor]:
        factors = adapter_factors(self.model, PRIMARY).values()
        return [weight + pair.delta_weight for weight, pair in zip(weights, factors, strict=True)]


@torch.no_grad()
def scaled_to(rho: float, gradients: Sequence[Tensor]) -> list[Tensor]:
    r"""Gradients scaled together to norm rho; a zero gradient, or one that overflowed, gives a zero perturbation."""
    norm = torch.stack(torch._foreach_norm(list(gradients))).norm()
    if not bool(torch.isfinite(norm)) or norm == 0:
        return [torch.zeros_like(gradient) for gradient in gradients]
    return [gradient * (rho / norm) for gradient in gradients]
