"""One search for the worst case in a ball: screened examples and groups, lifted, and climbs rationed by promise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from landscape.sharpness.ascent import Climb, Visit
from landscape.sharpness.balls import Ball
from landscape.sharpness.screen import Screen
from landscape.sharpness.shelf import Kept, held
from landscape.sharpness.surroundings import Surroundings

# The rationing, chosen on the digits minima: which climb ends highest shows after a few steps, but rarely at its start.
# Climbs to one maximum meet early; carrying several of them costs the places of those that come to a higher one late.
# Few examples carry a rise: a climb of their loss alone tells what a whole one's first steps do, at half the price.
_LIFTS = ((4, 10), (4, 5))
"""Steps of such climbs, and what is divided by to count the examples that each takes: those that lose most."""

_FIRST_STEPS = 4
_SAME = 0.95
"""Cosine of the angle between two points from which a climb has met a higher one."""

_MOST_CLIMBED, _CLOSE = 8, 0.75
"""Whole climbs, and the share of the highest lifted start's rise that one of them starts from."""

_FINALISTS, _MIDDLE_STEPS = 4, 5
_GROUP_STEPS = 8
_INNER_START = 0.3
"""Radius, over the ball's, of the random points at which groups begin."""

_EXAMPLE_ENDS, _GROUP_ENDS = 2, 3
"""At how many ends of short ascents the mean loss is evaluated for each that is a start: it tells them apart."""


@dataclass(frozen=True)
class Effort:
    """What one round of a search may spend.

    Attributes:
        steps: Steps of the climb that is brought to its end.
        restarts: Two thirds of the starts.
        screened: Examples whose own losses are ascended.
        tol: See `landscape.sharpness.ascent.Climb.advance`.
    """

    steps: int
    restarts: int
    screened: int
    tol: float


@dataclass(frozen=True)
class End:
    """Where an ascent has come, and the mean loss there."""

    loss: float
    epsilon: Kept


_High = TypeVar("_High", bound="Climb | End")


class Search:
    """Rounds of one search in one ball, which know nothing of another search's.

    Each round draws new examples, groups and starts. Short ascents of single examples' and groups' losses end where
    the mean loss may be high. Those where it is highest are the starts: each is lifted, by climbs of the loss of the
    examples that lose most there. Whole climbs go on from the highest points, of several that have met from one: a few
    steps each, the highest some more, and one to its end. In a ball of one basin these are few, in a rugged one many.

    Memory: 6 vectors (n,) at a time, those of `Screen` while it is at work, and about 3 ``restarts`` + 16 on the shelf.

    Args:
        around: The risk and its weights.
        ball: Where.
        effort: Of a round.
        seed: Of the draws that all searches share: which examples are looked at in which round.
        number: Of the search among ``total``; their samples of examples are disjoint where there are enough.
        total: Number of searches.
        starts: Directions to start from in the first round, by name.

    Attributes:
        best_loss: At the highest point met; ``best`` gives the point (n,), ``winner`` names the start that led there.
        start_losses: Largest loss reached from each start.
        own_rises: Largest rise of each screened example's own loss, by its number.
    """

    def __init__(
        self,
        around: Surroundings,
        ball: Ball,
        effort: Effort,
        *,
        seed: int,
        number: int,
        total: int,
        starts: Mapping[str, Kept],
    ) -> None:
        self._around, self._ball, self._effort, self._starts = around, ball, effort, dict(starts)
        self._number, self._total, self._rounds = number, total, 0
        order = torch.randperm(around.num_examples, generator=_generator(seed))
        self._order = order[around.weights[order] > 0]  # the others' losses count nowhere
        self._generator = _generator(seed, 1 + number)
        self.best_loss, self.winner = around.centre_loss, "centre"
        self.best: Kept = held(torch.zeros((), dtype=around.risk.dtype).expand(around.risk.num_params))
        self.start_losses: dict[str, float] = {}
        self.own_rises: dict[int, float] = {}

    def run(self, rounds: int) -> None:
        """Run some more rounds."""
        for _ in range(rounds):
            self._climb()
            self._rounds += 1

    @property
    def rise(self) -> float:
        """Rise of the best point over the centre."""
        return self.best_loss - self._around.centre_loss

    def _climb(self) -> None:
        lifted = [(name, self._lifted(start)) for name, start in self._round_starts()]
        climbed = self._climbed_from(lifted)
        for name, end in [one for one in lifted if one not in climbed]:
            self.start_losses[name] = max(end.loss, self.start_losses.get(name, end.loss))
        started: list[tuple[str, Climb]] = []
        for name, end in climbed:
            climb = Climb(self._around.visit, self._ball, self._around.visit(end.epsilon()), self._around.shelf)
            self._advance(name, climb, min(_FIRST_STEPS, self._effort.steps) - 1)
            started.append((name, climb))
        del lifted, climbed  # and what they hold
        finalists = highest_apart(self._ball, started, _FINALISTS)
        for name, climb in finalists:
            self._advance(name, climb, min(_MIDDLE_STEPS, self._effort.steps - _FIRST_STEPS))
        for name, climb in _highest(finalists)[:1]:
            self._advance(name, climb, self._effort.steps - _FIRST_STEPS - _MIDDLE_STEPS)

    def _climbed_from(self, ends: list[tuple[str, End]]) -> list[tuple[str, End]]:
        """The highest that have not met: of those close to the highest, and of starts that were given, all."""
        highest = max(end.loss for _, end in ends)
        slack = (1 - _CLOSE) * abs(highest - self._around.centre_loss) if math.isfinite(highest) else 0.0
        close = [(name, end) for name, end in ends if end.loss >= highest - slack or name in self._starts]
        apart = highest_apart(self._ball, close, len(close))
        return [one for place, one in enumerate(apart) if place < _MOST_CLIMBED or one[0] in self._starts]

    def _lifted(self, start: Kept) -> End:
        """Where climbs of the loss of those examples alone lead that lose most, or the start if that is higher."""
        around = self._around
        if not around.divisible:
            return self._first_steps(start)
        parts = self._parts(start)
        highest = end = End(around.centre_loss + math.fsum(parts.tolist()), start)
        for steps, divisor in _LIFTS:
            most = parts.argsort(descending=True, stable=True)[: math.ceil(around.num_examples / divisor)]
            visit = around.part(most.sort().values)
            end = self._first_steps(end.epsilon, visit, steps)
            parts = self._parts(end.epsilon)
            end = End(around.centre_loss + math.fsum(parts.tolist()), end.epsilon)
            highest = max(highest, end, key=lambda one: one.loss)
        return highest

    def _parts(self, epsilon: Kept) -> Tensor:
        """Parts (N,) of the mean loss's rise."""
        return (self._around.rises(epsilon()) * self._around.weights).nan_to_num(nan=math.inf, posinf=math.inf)

    def _first_steps(self, start: Kept, visit: Visit | None = None, steps: int = _FIRST_STEPS) -> End:
        visit = visit or self._around.visit
        climb = Climb(visit, self._ball, visit(start()), self._around.shelf)
        climb.advance(steps - 1, floor=climb.loss, tol=self._effort.tol)
        return End(climb.loss, climb.epsilon)

    def _round_starts(self) -> Iterator[tuple[str, Kept]]:
        """Points of the ball to climb from, one at a time."""
        if self._rounds == 0:
            for name, direction in self._starts.items():
                yield name, partial(self._towards, direction)
        restarts, turn = 3 * self._effort.restarts // 2, self._rounds * self._total + self._number
        if not self._around.divisible:
            for number in range(restarts):
                yield f"random {turn * restarts + number + 1}", partial(self._towards, self._noise)
            return
        examples = (2 * restarts + 1) // 3
        yield from self._screened(turn, examples)
        yield from self._grouped(turn, restarts - examples)

    def _towards(self, direction: Kept) -> Tensor:
        risk = self._around.risk
        return self._ball.onto_boundary(direction().to(risk.device, risk.dtype))

    def _screened(self, turn: int, count: int) -> Iterator[tuple[str, Kept]]:
        """Ends of ascents of examples' own losses: the most promising one's, and where the mean loss is highest."""
        size = min(self._effort.screened, len(self._order))
        sample = self._order.roll(-turn * size)[:size].sort().values
        led = slice(self._number, None, self._total)
        screen = Screen(self._around, self._ball, sample, self._generator, keep=_EXAMPLE_ENDS * count, led=led)
        for example, rise in zip(sample.tolist(), screen.rises().tolist(), strict=True):
            self.own_rises[example] = max(rise, self.own_rises.get(example, 0.0))
        ends = ((f"example {int(sample[place])}", screen.end(int(place))) for place in screen.promising)
        first = next(ends)
        chosen = [first, *self._highest_ends(ends, count - 1)]
        del screen, ends  # its vectors are not needed while the climbs go on
        yield from chosen

    def _grouped(self, turn: int, count: int) -> Iterator[tuple[str, Kept]]:
        """Ends of ascents of random tenths of the examples, where the mean loss is highest."""
        number = _GROUP_ENDS * count
        names = (f"group {turn * number + place + 1}" for place in range(number))
        yield from self._highest_ends(((name, self._group_end()) for name in names), count)

    def _group_end(self) -> Kept:
        visit = self._around.random_part(self._generator)
        start = visit(self._ball.onto_boundary(self._noise()).mul_(_INNER_START))
        climb = Climb(visit, self._ball, start, self._around.shelf)
        climb.advance(_GROUP_STEPS - 1, floor=start.loss, tol=self._effort.tol)
        return climb.epsilon

    def _highest_ends(self, ends: Iterable[tuple[str, Kept]], count: int) -> list[tuple[str, Kept]]:
        """The ``count`` at which the mean loss is largest."""
        kept: list[tuple[float, str, Kept]] = []
        for name, end in ends:
            loss = self._around.loss(end())
            kept = sorted([*kept, (loss, name, end)], key=lambda item: item[0], reverse=True)[:count]
        return [(name, end) for _, name, end in kept]

    def _advance(self, name: str, climb: Climb, steps: int) -> None:
        loss = climb.advance(steps, floor=self._around.centre_loss, tol=self._effort.tol)
        self.start_losses[name] = max(loss, self.start_losses.get(name, loss))
        if loss > self.best_loss:
            self.best_loss, self.best, self.winner = loss, climb.epsilon, name

    def _noise(self) -> Tensor:
        return self._ball.perturbation(self._around.noise(self._generator))


def _highest(climbs: list[tuple[str, _High]]) -> list[tuple[str, _High]]:
    return sorted(climbs, key=lambda item: item[1].loss, reverse=True)


def highest_apart(ball: Ball, climbs: list[tuple[str, _High]], count: int) -> list[tuple[str, _High]]:
    """The ``count`` highest, without those that seem to be on their way to where a higher one is."""
    apart: list[tuple[str, _High]] = []
    for name, climb in _highest(climbs):
        if len(apart) < count and not any(ball.cosine(climb.epsilon(), other.epsilon()) > _SAME for _, other in apart):
            apart.append((name, climb))
    return apart


def _generator(*path: int) -> torch.Generator:
    """A generator of its own for every path of numbers."""
    (state,) = np.random.SeedSequence([int(number) % 2**63 for number in path]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
