"""Which examples can carry a worst case: every one's own loss is ascended, at the price of one example a step."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.examples import PointwiseGradient, own_gradients
from landscape.sharpness.ascent import FIRST_STEP
from landscape.sharpness.balls import Ball
from landscape.sharpness.surroundings import Surroundings

# Chosen on the digits minima at radii 0.05 to 0.2: an ascent from an example's own gradient misses basins behind a
# barrier, whatever its length, but lets such an example rank in the upper half, and often much higher by its eighth
# step; 15 to 35 % of the random starts enter the basin, and it shows by their fifth to tenth step.
_OWN_STEPS = 8
_RANDOM_STARTS, _RANDOM_STEPS = 4, 6
_CLOSER_STARTS, _CLOSER_STEPS = 6, 12

_DIRECTIONS = 4
_NOISE = 0.1
"""Length of the random vector added to each direction: what is orthogonal to all gradients has to be found, too."""


class Screen:
    r"""Own worst cases of a sample of examples: the highest point of each one's own loss that short ascents reach.

    The worst case of a mean loss is often carried by one or a few examples, and each has basins of its own: an
    example's gradient leads to that of its runner-up class, while a higher one may begin only behind a barrier. So
    every example is ascended from its own gradient, the upper half of them from a few random starts, too, and the most
    promising ones again. Random starts are combinations of the examples' unit gradients: the outputs change along them,
    unlike along noise. In larger balls the maximum belongs to many examples at once, and what one of them gains says
    little: some are chosen by the mean loss to which their gradients lead, estimated on every tenth example.

    Memory: ``keep`` + 8 vectors (n,), and those of the examples that go through the model together.

    Args:
        around: The risk and its weights.
        ball: Where.
        examples: (m,) numbers of the sample.
        generator: Of the starts; in the same state on every rank.
        keep: How many examples are looked at more closely.

    Attributes:
        promising: Places in the sample of these examples: half of them those with the largest parts in the mean loss's
            rise, the largest first, and half those whose gradients lead to where it seems high for others, too.
    """

    def __init__(
        self, around: Surroundings, ball: Ball, examples: Tensor, generator: torch.Generator, *, keep: int
    ) -> None:
        self.examples = examples
        self._around, self._ball, self._generator = around, ball, generator
        self._centre_losses = torch.zeros(len(examples), dtype=torch.float64)
        self._highest = torch.full((len(examples),), -torch.inf, dtype=torch.float64)
        self._recipes = torch.full((len(examples), _DIRECTIONS), torch.nan)  # of the best start; NaN: own gradient
        self._ends: dict[int, Tensor] = {}
        self._estimates = torch.zeros(len(examples), dtype=torch.float64)
        self._directions = self._first_look()
        everyone = torch.arange(len(examples))
        upper = self._most_promising(everyone)[: (len(examples) + 1) // 2]
        starts = upper.repeat_interleave(_RANDOM_STARTS)
        self._look(starts, self._random_recipes(len(starts)), _RANDOM_STEPS)
        carriers = self._most_promising(everyone)[: keep - keep // 2]
        neighbours = self._leading_to_high_means(carriers)[: keep // 2]
        # Their end points were not kept: from the best starts once more, and from new ones.
        again, closer = torch.cat([carriers, neighbours]), carriers.repeat_interleave(_CLOSER_STARTS)
        plain = torch.full((len(neighbours), _DIRECTIONS), torch.nan)
        recipes = [self._recipes[carriers], plain, self._random_recipes(len(closer))]
        before = self._highest.clone()
        self._highest[again] = -torch.inf
        self._look(torch.cat([again, closer]), torch.cat(recipes), _CLOSER_STEPS, keep=True)
        self._highest = self._highest.maximum(before)
        self.promising = torch.cat([self._most_promising(carriers), neighbours])

    def rises(self) -> Tensor:
        """(m,) float64 largest own rise met of every example of the sample, the same on every rank."""
        mine = self._around.here(self.examples)
        rises = torch.zeros_like(self._highest)
        rises[mine] = (self._highest - self._centre_losses)[mine].clamp(min=0)
        return self._around.risk.ranks.all_sum(rises)

    def end(self, place: int) -> Tensor:
        """The highest point met (n,) of one of the promising examples, the same on every rank."""
        found = self._ends.get(place)
        return self._around.risk.ranks.all_sum(torch.zeros_like(self._around.theta) if found is None else found.clone())

    def _first_look(self) -> Tensor:
        """Ascend from the examples' own gradients; return the directions of which random starts are made."""
        directions = self._around.theta.new_zeros(_DIRECTIONS, len(self._around.theta))
        weights = torch.randn(_DIRECTIONS, len(self.examples), generator=self._generator)
        sampled_loss = self._around.sampled_loss(self._generator)
        for places, gradient_at in self._own(torch.arange(len(self.examples))):
            losses, gradients = gradient_at(self._around.theta.expand(len(places), -1))
            self._centre_losses[places] = losses.double().cpu()
            directions += weights[:, places].to(gradients) @ _unit(gradients)
            reached, ends = self._ascend(gradient_at, self._ball.extreme(gradients), _OWN_STEPS)
            self._highest[places] = reached
            self._estimates[places] = torch.tensor([sampled_loss(end) for end in ends], dtype=torch.float64)
        self._count(len(self.examples) * (1 + _OWN_STEPS))
        self._around.risk.ranks.all_sum(directions)
        noise = torch.empty_like(directions)
        for row in noise:
            row.copy_(self._around.noise(self._generator))
        return _made_unit(directions).add_(_made_unit(noise).mul_(_NOISE))

    def _random_recipes(self, count: int) -> Tensor:
        """Coefficients (count, directions) of random starts."""
        return torch.randn(count, _DIRECTIONS, generator=self._generator)

    def _look(self, chosen: Tensor, recipes: Tensor, steps: int, *, keep: bool = False) -> None:
        """Ascend examples, which may stand in ``chosen`` several times, each from the start of its own recipe."""
        for rows, gradient_at in self._own(chosen):
            mix = recipes[rows].to(self._directions)
            starts = self._ball.onto_boundary(mix.nan_to_num() @ self._directions)
            own = mix.isnan().any(dim=1, keepdim=True)
            if bool(own.any()):
                _, gradients = gradient_at(self._around.theta.expand(len(rows), -1))
                starts = torch.where(own, self._ball.extreme(gradients), starts)
            reached, ends = self._ascend(gradient_at, starts, steps)
            for index, row in enumerate(rows.tolist()):
                place = int(chosen[row])
                if reached[index] > self._highest[place]:
                    self._highest[place], self._recipes[place] = reached[index], recipes[row]
                    if keep:
                        self._ends[place] = ends[index].clone()
        self._count(len(chosen) * steps)

    def _ascend(self, gradient_at: PointwiseGradient, points: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """`landscape.sharpness.ascent.Climb` row by row: losses (c,) float64 reached on the CPU, and where (c, n)."""
        theta, rho = self._around.theta, self._ball.rho
        losses, gradients = gradient_at(theta + points)
        step = torch.full((len(points), 1), FIRST_STEP, dtype=points.dtype, device=points.device)
        for _ in range(steps - 1):
            candidates = self._ball.project(points + step * rho * self._ball.ascent_direction(gradients))
            new_losses, new_gradients = gradient_at(theta + candidates)
            up = (new_losses > losses)[:, None]
            losses = torch.where(up[:, 0], new_losses, losses)
            points, gradients = torch.where(up, candidates, points), torch.where(up, new_gradients, gradients)
            step = torch.where(up, step, step / 2)
        return losses.double().cpu(), points

    def _own(self, chosen: Tensor) -> list[tuple[Tensor, PointwiseGradient]]:
        """The rows of ``chosen`` (places in the sample) that this rank holds, in chunks, with their own gradients."""
        mine = self._around.here(self.examples[chosen])
        numbers = self.examples[chosen[mine]] - self._around.first
        return [(mine[where], gradient_at) for where, gradient_at in own_gradients(self._around.risk, numbers)]

    def _most_promising(self, chosen: Tensor) -> Tensor:
        """The places in the order of what their own rise would add to the mean's."""
        parts = (self._around.weights[self.examples] * self.rises())[chosen]
        return chosen[parts.argsort(descending=True, stable=True)]

    def _leading_to_high_means(self, without: Tensor) -> Tensor:
        """The places of the others in the order of the mean loss that was estimated where their own gradients lead."""
        others = torch.ones(len(self.examples), dtype=torch.bool)
        others[without] = False
        estimates = self._around.risk.ranks.all_sum(self._estimates.clone())
        estimates += self._around.weights[self.examples] * self.rises()
        order = estimates.argsort(descending=True, stable=True)
        return order[others[order]]

    def _count(self, example_passes: int) -> None:
        self._around.counter.num_passes += example_passes / self._around.num_examples


def _unit(rows: Tensor) -> Tensor:
    return rows / _norms(rows)


def _made_unit(rows: Tensor) -> Tensor:
    """The same in place: at this point vectors of weight space are what memory is full of."""
    return rows.div_(_norms(rows))


def _norms(rows: Tensor) -> Tensor:
    return rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
