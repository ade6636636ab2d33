"""Which examples can carry a worst case: every one's own loss is ascended, at the price of one example a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from landscape.examples import PointwiseGradient, own_gradients
from landscape.sharpness.ascent import FIRST_STEP
from landscape.sharpness.balls import Ball
from landscape.sharpness.shelf import Kept
from landscape.sharpness.surroundings import Surroundings

# Chosen on the digits minima at radii 0.05 to 0.2: an ascent from an example's own gradient misses basins behind a
# barrier, whatever its length, but lets such an example rank in the upper half, and often much higher by its eighth
# step; 15 to 35 % of the random starts enter the basin, and it shows by their fifth to tenth step.
_OWN_STEPS = 8
_RANDOM_STARTS, _RANDOM_STEPS = 4, 6
_CLOSER_STARTS, _CLOSER_STEPS = 6, 12

_TINY = torch.finfo(torch.float64).tiny
_DIRECTIONS = 4
_NOISE = 0.1
"""Radius, over the ball's, of random vectors in the directions: what is orthogonal to all gradients has to be found."""


_Note = Callable[[list[int], Tensor], None]
"""Told places in the sample and a point (n,) for each."""


class Screen:
    r"""Own worst cases of a sample of examples: the highest point of each one's own loss that short ascents reach.

    The worst case of a mean loss is often carried by one or a few examples, and each has basins of its own: an
    example's gradient leads to that of its runner-up class, while a higher one may begin only behind a barrier. So
    every example is ascended from its own gradient, the upper half of them from a few random starts, too, and the most
    promising ones again. Random starts are combinations of the examples' unit gradients: the outputs change along them,
    unlike along noise alone. In larger balls the maximum belongs to many examples at once, and what one of them gains
    says little: some are chosen by the mean loss to which their gradients lead, which is evaluated for a part of them.

    Memory: the vectors (n,) of the examples that go through the model together, seven each; ``keep`` + 4 vectors on the
    shelf.

    Args:
        around: The risk and its weights.
        ball: Where.
        examples: (m,) numbers of the sample.
        generator: Of the starts; in the same state on every rank.
        keep: How many examples are looked at more closely.
        led: Places in the sample of those of which the mean loss to which their gradients lead is evaluated.

    Attributes:
        promising: Places in the sample of these examples: half of them those with the largest parts in the mean loss's
            rise, the largest first, and half those whose gradients lead to where it seems high for others, too.
    """

    def __init__(
        self,
        around: Surroundings,
        ball: Ball,
        examples: Tensor,
        generator: torch.Generator,
        *,
        keep: int,
        led: slice,
    ) -> None:
        self.examples = examples
        self._around, self._ball, self._generator = around, ball, generator
        self._centre_losses = torch.zeros(len(examples), dtype=torch.float64)
        self._highest = torch.full((len(examples),), -torch.inf, dtype=torch.float64)
        self._recipes = torch.full((len(examples), _DIRECTIONS), torch.nan)  # of the best start; NaN: own gradient
        self._led = torch.zeros(len(examples), dtype=torch.bool)
        self._led[led] = True
        self._ends: dict[int, Kept] = {}
        self._estimates = torch.zeros(len(examples), dtype=torch.float64)
        self._directions = self._random_directions()
        everyone = torch.arange(len(examples))
        self._look(everyone, self._own_recipes(len(everyone)), _OWN_STEPS, self._estimate_mean())
        upper = self._most_promising(everyone)[: (len(examples) + 1) // 2]
        starts = upper.repeat_interleave(_RANDOM_STARTS)
        self._look(starts, self._random_recipes(len(starts)), _RANDOM_STEPS)
        carriers = self._most_promising(everyone)[: keep - keep // 2]
        neighbours = self._leading_to_high_means(carriers)[: keep // 2]
        # Their end points were not kept: from the best starts once more, and from new ones.
        again, closer = torch.cat([carriers, neighbours]), carriers.repeat_interleave(_CLOSER_STARTS)
        plain, others = self._own_recipes(len(neighbours)), self._random_recipes(len(closer))
        before = self._highest.clone()
        self._highest[again] = -torch.inf
        recipes = torch.cat([self._recipes[carriers], plain, others])
        self._look(torch.cat([again, closer]), recipes, _CLOSER_STEPS, self._keep_ends)
        self._highest = self._highest.maximum(before)
        self.promising = torch.cat([self._most_promising(carriers), neighbours])

    def rises(self) -> Tensor:
        """(m,) float64 largest own rise met of every example of the sample, the same on every rank."""
        mine = self._around.here(self.examples)
        rises = torch.zeros_like(self._highest)
        rises[mine] = (self._highest - self._centre_losses)[mine].clamp(min=0)
        return self._around.risk.ranks.all_sum(rises)

    def end(self, place: int) -> Kept:
        """The highest point met (n,) of one of the promising examples, the same on every rank."""
        found, ranks = self._ends.get(place), self._around.risk.ranks
        if ranks.count == 1 and found is not None:
            return found
        return self._around.shelf.put(ranks.all_sum(self._zeros() if found is None else found().clone()))

    def _random_directions(self) -> list[Kept]:
        """The directions of which random starts are made; the losses at the centre by the way."""
        weights = torch.randn(_DIRECTIONS, len(self.examples), generator=self._generator)
        shelf, ranks = self._around.shelf, self._around.risk.ranks
        sums = [shelf.put(self._zeros()) for _ in range(_DIRECTIONS)]
        for places, gradient_at in self._own(torch.arange(len(self.examples))):
            losses, gradients = gradient_at(self._around.risk.theta.expand(len(places), -1))
            self._centre_losses[places] = losses.double().cpu()
            ascents = self._ball.ascent_direction(gradients)
            del gradients
            for number, row in enumerate(weights[:, places].to(ascents)):
                sums[number] = shelf.put(torch.addmv(sums[number](), ascents.T, row))
            del ascents
        self._count(len(self.examples))
        directions = []
        while sums:
            mixed = self._ball.onto_boundary(ranks.all_sum(sums.pop(0)()))
            noise = self._ball.perturbation(self._around.noise(self._generator))
            directions.append(shelf.put(mixed.add_(self._ball.onto_boundary(noise), alpha=_NOISE)))
        return directions

    def _random_recipes(self, count: int) -> Tensor:
        """Coefficients (count, directions) of random starts."""
        return torch.randn(count, _DIRECTIONS, generator=self._generator)

    def _own_recipes(self, count: int) -> Tensor:
        """What stands for an example's own gradient as its start."""
        return torch.full((count, _DIRECTIONS), torch.nan)

    def _look(self, chosen: Tensor, recipes: Tensor, steps: int, note: _Note | None = None) -> None:
        """Ascend examples, which may stand in ``chosen`` several times, each from the start of its own recipe.

        ``note`` is told where an example's own loss has come higher than before.
        """
        for rows, gradient_at in self._own(chosen):
            reached, ends = self._ascend(gradient_at, self._starts(recipes[rows], gradient_at), steps)
            higher: dict[int, int] = {}
            for index, row in enumerate(rows.tolist()):
                place = int(chosen[row])
                if reached[index] > self._highest[place]:
                    self._highest[place], self._recipes[place] = reached[index], recipes[row]
                    higher[place] = index
            if note and higher:
                note(list(higher), ends if len(ends) == 1 else ends[list(higher.values())])
            del ends  # where one example is a vector of memory, each counts
        self._count(len(chosen) * steps + int(recipes.isnan().any(dim=1).sum()))

    def _starts(self, recipes: Tensor, gradient_at: PointwiseGradient) -> Tensor:
        """Points (c, n) of the ball's boundary for the recipes (c, directions) of as many examples."""
        own = recipes.isnan().any(dim=1)
        if bool(own.all()):
            return self._from_own_gradients(len(recipes), gradient_at)
        mixed = self._zeros(len(recipes))
        for coefficients, direction in zip(recipes.nan_to_num().to(mixed).T, self._directions, strict=True):
            mixed.addr_(coefficients, direction())
        mixed = self._ball.onto_boundary(mixed)
        if not bool(own.any()):
            return mixed
        plain = self._from_own_gradients(len(recipes), gradient_at)
        return torch.where(own.to(mixed.device)[:, None], plain, mixed)

    def _from_own_gradients(self, count: int, gradient_at: PointwiseGradient) -> Tensor:
        return self._ball.extreme(gradient_at(self._around.risk.theta.expand(count, -1))[1])

    def _estimate_mean(self) -> _Note:
        """A note-taker that estimates the mean loss of the others where an example's ascent has ended.

        What an example has gained itself would stand for many if it were one of a few that estimate.
        """
        sample, sampled_losses = self._around.sampled_losses(self._generator, int(self._led.sum()))
        weights = self._around.weights
        whole = weights[sample].sum()

        def note(places: list[int], ends: Tensor) -> None:
            rows = [row for row, place in enumerate(places) if self._led[place]]
            if not rows:
                return
            if len(rows) < len(places):
                places, ends = [places[row] for row in rows], ends[rows]
            chosen = self.examples[places]
            own = torch.where(torch.isin(chosen, sample), weights[chosen], 0.0)
            others = whole * sampled_losses(ends) - own * self._highest[places]
            self._estimates[places] = (others / (whole - own).clamp(min=_TINY)).nan_to_num(
                nan=torch.inf, posinf=torch.inf
            )

        return note

    def _keep_ends(self, places: list[int], ends: Tensor) -> None:
        for place, end in zip(places, ends, strict=True):
            self._ends[place] = self._around.shelf.put(end.clone())

    def _zeros(self, *rows: int) -> Tensor:
        risk = self._around.risk
        return torch.zeros(*rows, risk.num_params, dtype=risk.dtype, device=risk.device)

    def _ascend(self, gradient_at: PointwiseGradient, points: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """`landscape.sharpness.ascent.Climb` row by row: losses (c,) float64 reached on the CPU, and where (c, n)."""
        losses, gradients = gradient_at(self._around.displaced(points))
        step = torch.full((len(points), 1), FIRST_STEP, dtype=torch.float64, device=points.device)
        for _ in range(steps - 1):
            candidates = self._ball.stepped(points, gradients, step)
            new_losses, new_gradients = gradient_at(self._around.displaced(candidates))
            up = new_losses > losses
            losses = torch.where(up, new_losses, losses)
            points, gradients = _replaced(points, candidates, up), _replaced(gradients, new_gradients, up)
            del candidates, new_gradients  # where one example is a vector of memory, each counts
            step = torch.where(up[:, None], step, step / 2)
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
        """Places of others in the order of the mean loss that was estimated where their own gradients lead."""
        others = self._led.clone()
        others[without] = False
        estimates = self._around.risk.ranks.all_sum(self._estimates.clone())
        estimates += self._around.weights[self.examples] * self.rises()
        order = estimates.argsort(descending=True, stable=True)
        return order[others[order]]

    def _count(self, example_passes: int) -> None:
        self._around.counter.num_passes += example_passes / self._around.num_examples


def _replaced(rows: Tensor, others: Tensor, which: Tensor) -> Tensor:
    """Rows with those named replaced by others; what there is of either is used up."""
    kept, source = (others, rows) if 2 * int(which.sum()) > len(which) else (rows, others)
    for row in torch.nonzero(which if kept is rows else ~which).ravel().tolist():
        kept[row].copy_(source[row])  # by row: masks sweep over all of them several times
    return kept
