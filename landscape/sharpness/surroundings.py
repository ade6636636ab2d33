"""What searches of one risk around its weights share: the centre, the passes counted, and the parts of the data."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from landscape.batches import map_tensors
from landscape.examples import can_take_examples, take_examples
from landscape.risk import EmpiricalRisk
from landscape.sharpness.ascent import PassCounter, Visit
from landscape.sharpness.shelf import Kept, Shelf
from landscape.surfaces.points import PointLosses

_SHARE_OF_A_FORWARD = 1 / 3
_MOST_SAMPLED = 128


class Surroundings:
    """One risk around its weights.

    Examples are numbered through the ranks of a process group; each rank holds a range of the numbers.

    Args:
        risk: The mean loss; its model's weights are the centre.
        shelf: Where vectors wait; by default in memory.

    Attributes:
        centre_loss: The loss at the weights, and ``centre_gradient``, which gives its gradient (n,).
        num_examples: N, over all ranks.
        first: Number of this rank's first example.
        divisible: Whether the batches can be taken apart into examples.

    Raises:
        FloatingPointError: The loss is not finite at the centre.
    """

    def __init__(self, risk: EmpiricalRisk, shelf: Shelf | None = None) -> None:
        self.risk, self.counter, self.shelf = risk, PassCounter(), shelf or Shelf("memory")
        self.visit: Visit = self.counter.visits(risk)
        centre = self.visit(torch.zeros(1, dtype=risk.dtype, device=risk.device))
        self.centre_loss = centre.loss
        self.centre_gradient: Kept = self.shelf.put(centre.gradient)
        if not math.isfinite(centre.loss):
            raise FloatingPointError(f"the loss at the centre of the ball is {centre.loss}: nothing to compare")
        counts = risk.ranks.counts(risk.num_examples)
        self.num_examples, self.first = sum(counts), sum(counts[: risk.ranks.number])
        self.divisible = all(risk.ranks.counts(can_take_examples(risk)))
        self.weights = self.everywhere(risk.example_weights.double().cpu()) / risk.total_weight
        self._centre_losses = risk.per_example_losses().double().cpu()
        self.counter.num_passes += _SHARE_OF_A_FORWARD

    def displaced(self, epsilons: Tensor) -> Tensor:
        """Weights (..., n) displaced by perturbations (..., n)."""
        theta = self.risk.theta.expand_as(epsilons)
        return theta.add_(epsilons) if epsilons.numel() == self.risk.num_params else theta + epsilons

    def loss(self, epsilon: Tensor) -> float:
        """The mean loss at a perturbation, by a forward pass."""
        self.counter.num_passes += _SHARE_OF_A_FORWARD
        loss = self.risk.loss(self.displaced(epsilon))
        return math.inf if math.isnan(loss) else loss

    def sampled_losses(self, generator: torch.Generator, num_points: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Numbers of all examples that count or of 64 to 128 of more, and their mean losses (c,) at epsilons (c, n).

        For comparing points. Every rank gets these examples: no two need to call the function equally often. What is
        counted are the ``num_points`` of all ranks, so that all know the same number of passes.
        """
        (counting,) = torch.where(self.weights > 0)
        stride = math.ceil(len(counting) / _MOST_SAMPLED)
        first = int(torch.randint(stride, (), generator=generator))
        rows = counting[first % len(counting) :: stride]
        mine = take_examples(self.risk, rows[self.here(rows)] - self.first)
        ranks = self.risk.ranks
        if ranks.count > 1:
            mine = [map_tensors(batch, Tensor.cpu) for part in ranks.gathered(mine) for batch in part]
        self.counter.num_passes += _SHARE_OF_A_FORWARD * num_points * len(rows) / self.num_examples
        evaluate = PointLosses(self.risk.alone_on(mine), chunk=None, batch_norm="frozen")

        def losses(epsilons: Tensor) -> Tensor:
            return torch.cat([evaluate(self.displaced(part)) for part in epsilons.split(evaluate.chunk)])

        return rows, losses

    def everywhere(self, mine: Tensor) -> Tensor:
        """Numbers (N,) of all examples from those of this rank's."""
        whole = torch.zeros(self.num_examples, dtype=mine.dtype)
        whole[self.first : self.first + len(mine)] = mine
        return self.risk.ranks.all_sum(whole)

    def here(self, examples: Tensor) -> Tensor:
        """Places in ``examples`` of those that this rank holds."""
        return torch.where((examples >= self.first) & (examples < self.first + self.risk.num_examples))[0]

    def part(self, examples: Tensor) -> Visit:
        """A function that visits points of the mean loss over some examples, of all if none of them has a weight."""
        examples = examples[self.weights[examples] > 0]
        if not len(examples):
            return self.visit
        mine = examples[self.here(examples)] - self.first
        risk = self.risk.on(take_examples(self.risk, mine), check=False)
        risk.expect_used = False
        return self.counter.visits(risk, share=len(examples) / self.num_examples)

    def random_part(self, generator: torch.Generator) -> Visit:
        """The same for a random tenth of the examples, at least one."""
        order = torch.randperm(self.num_examples, generator=generator)
        return self.part(order[: max(1, self.num_examples // 10)])

    def noise(self, generator: torch.Generator) -> Tensor:
        """A random direction (n,), the same on every rank."""
        return torch.randn(self.risk.num_params, dtype=self.risk.dtype, generator=generator).to(self.risk.device)

    def rises(self, epsilon: Tensor) -> Tensor:
        """(N,) float64 rise of every example's loss at a perturbation."""
        self.counter.num_passes += _SHARE_OF_A_FORWARD
        losses = self.risk.per_example_losses(self.displaced(epsilon)).double().cpu()
        return self.everywhere(losses - self._centre_losses)
