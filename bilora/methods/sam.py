"""Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412) over three spaces of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from torch import Tensor, nn

from bilora.adapters import PRIMARY, adapted_layers, adapter_factors, frozen_weight
from bilora.attaching import attach_primary
from bilora.gradients import StepGradients
from bilora.methods.base import (
    ADAPTER,
    ADDED_TO_THE_WEIGHT,
    BALL,
    Backward,
    Method,
    gradients_of,
    trained_as_they_are,
)
from bilora.perturbing import buffers_kept, check_precise, devices_of, layers_moved
from landscape.distributed import Ranks
from landscape.perturbation import perturbed


class Sam(Method):
    r"""SAM on all weights: the gradient is taken at :math:`\theta + \rho\,g/\|g\|`.

    With ``adaptive`` it is ASAM (Kwon et al. 2021, arXiv 2102.11600, section 4): :math:`\rho\,T^2g/\|Tg\|` with
    :math:`T = |\theta| + 0.01` element by element. When gradients are accumulated, every micro-batch is perturbed by
    its own gradient, as m-sharpness has it; on several ranks, by the gradient averaged over them. Both passes see the
    same dropout masks, and what a module notes in its buffers is what it noted in the first.
    """

    name = "sam"
    summary = "full fine-tuning with SAM on all weights"
    passes_per_step = 2
    uses: ClassVar[frozenset[str]] = BALL | {"adaptive"}

    def prepare(self, model: nn.Module) -> nn.Module:
        check_precise(self.name, (p for p in model.parameters() if p.requires_grad))
        return trained_as_they_are(model, self.name)

    def gradient(self, backward: Backward) -> Tensor:
        # The first pass leaves the random numbers where it found them.
        with torch.random.fork_rng(devices=devices_of(self.model.parameters())), self.ascending():
            epsilons = self.first_pass(backward, self.perturbed_parameters())
        with buffers_kept(self.model), self.moved_by(epsilons):
            return backward()

    def perturbed_parameters(self) -> list[nn.Parameter]:
        """Weights that the perturbation moves."""
        return self.primary_parameters()

    def moved_by(self, epsilons: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Hold the weights at the perturbed point."""
        return perturbed(self.perturbed_parameters(), epsilons)

    def first_pass(self, backward: Backward, moved: Sequence[nn.Parameter]) -> list[Tensor]:
        r"""The perturbation :math:`\rho\,g/\|g\|` from one pass at the weights themselves."""
        check_precise(self.name, moved)
        affected = list(dict.fromkeys([*moved, *self.primary_parameters()]))
        _, gradients = gradients_of(backward, affected)
        # Wrappers average over ranks only when a step is due; the perturbation has no scale, so that twice is as good.
        return self.scaled(moved, [Ranks().all_sum(gradient) for gradient in gradients[: len(moved)]])

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
    uses: ClassVar[frozenset[str]] = ADAPTER | Sam.uses

    def prepare(self, model: nn.Module) -> nn.Module:
        return attach_primary(model, self.config, seed=self.seed)

    def perturbed_parameters(self) -> list[nn.Parameter]:
        factors = adapter_factors(self.model, PRIMARY).values()
        return [factor for pair in factors for factor in (pair.A, pair.B)]  # type: ignore[misc]


class LoraSamFull(LoraSam):
    r"""LoRA with SAM's perturbation in the full space: :math:`\epsilon_j = \rho\,G_j/\|G\|` on the merged weights.

    :math:`G_j` is the gradient at layer j's merged weight, and the layer alone is moved, not other users of its frozen
    weight. It costs an out×in gradient and copy per layer: a yardstick for small models.

    Attributes:
        perturbation: The last pass's, (out, in) by layer, until the step is done.
    """

    name = "lora_sam_full"
    fits = ADDED_TO_THE_WEIGHT
    summary = "LoRA with SAM's perturbation of the merged weights (yardstick)"

    def perturbed_parameters(self) -> list[nn.Parameter]:
        return [layer.get_base_layer().weight for layer in adapted_layers(self.model).values()]

    def begin_step(self) -> None:
        self.perturbation: Mapping[str, Tensor] = {}

    def moved_by(self, epsilons: Sequence[Tensor]) -> AbstractContextManager[None]:
        layers = adapted_layers(self.model)
        self.perturbation = dict(zip(layers, epsilons, strict=True))
        return layers_moved(self.model, list(layers.values()), epsilons)

    def first_pass(self, backward: Backward, moved: Sequence[nn.Parameter]) -> list[Tensor]:
        with StepGradients(self, "ascent") as step:
            gradients_of(backward, self.primary_parameters())
        seen = self.direction(step.of_layers())
        merged = self._merged()
        gradients = [seen[name].to(weight) if name in seen else torch.zeros_like(weight) for name, weight in merged]
        return self.scaled([weight for _, weight in merged], gradients)

    def direction(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Where the perturbation points, given G (out, in) by layer."""
        return gradients

    @torch.no_grad()
    def _merged(self) -> list[tuple[str, Tensor]]:
        """Merged weights (out, in) in at least float32; without ``adaptive`` only their shapes count."""
        factors = adapter_factors(self.model, PRIMARY)
        layers = {name: frozen_weight(layer) for name, layer in adapted_layers(self.model).items()}
        precise = {name: w.to(torch.promote_types(w.dtype, torch.float32)) for name, w in layers.items()}
        if self.config.adaptive:
            precise = {name: weight + factors[name].delta_weight.to(weight) for name, weight in precise.items()}
        return list(precise.items())


@torch.no_grad()
def scaled_to(rho: float, gradients: Sequence[Tensor]) -> list[Tensor]:
    r"""Gradients scaled together to norm rho; a zero gradient, or one that overflowed, gives a zero perturbation."""
    norm = torch.stack(torch._foreach_norm(list(gradients))).norm()
    if not bool(torch.isfinite(norm)) or norm == 0:
        return [torch.zeros_like(gradient) for gradient in gradients]
    return [gradient * (rho / norm) for gradient in gradients]
