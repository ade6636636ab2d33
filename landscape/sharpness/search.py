"""One search for the worst case in a ball: screened examples and groups, and climbs rationed by promise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.sharpness.ascent import Climb, Point
from landscape.sharpness.balls import Ball
from landscape.sharpness.screen import Screen
from landscape.sharpness.surroundings import Surroundings

# The rationing, chosen on the digits minima: which climb ends highest shows after a few steps, but rarely at its start.
_EARLY_STEPS, _FINALISTS = 4, 4
_MIDDLE_STEPS = 6
_GROUP_STEPS = 8
_INNER_START = 0.3
"""Radius, over the ball's, of the random points at which groups begin."""

_EXAMPLE_ENDS, _GROUP_ENDS = 4, 6
"""At how many ends of short ascents the mean loss is evaluated for each that is climbed from: it tells them apart."""


@dataclass(frozen=True)
class Effort:
    """What one round of a search may spend.

    Attributes:
        steps: Steps of the climb that is brought to its end.
        restarts: Starts that are climbed from.
        screened: Examples whose own losses are ascended.
        tol: See `landscape.sharpness.ascent.Climb.advance`.
    """

    steps: int
    restarts: int
    screened: int
    tol: float


class Search:
    """Rounds of one search in one ball, which know nothing of another search's.

    Each round draws new examples, groups and starts. Short ascents of single examples' and groups' losses end where
    the mean loss may be high; from the ends where it is highest climbs of the mean loss take a few steps each. The
    highest of these go on, and of them the highest to its end.

    Memory: about 3 ``restarts`` + 12 vectors (n,), of which the screen's are released before the climbs.

    Args:
        around: The risk and its weights.
        ball: Where.
        effort: Of a round.
        seed: Of the draws that all searches share: which examples are looked at in which round.
        number: Of the search among ``total``; their samples of examples are disjoint where there are enough.
        total: Number of searches.
        starts: Directions to start from in the first round, by name.

    Attributes:
        best: The highest point met, and ``winner``, the start from which it was reached.
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
        starts: Mapping[str, Tensor],
    ) -> None:
        self._around, self._ball, self._effort, self._starts = around, ball, effort, dict(starts)
        self._number, self._total, self._rounds = number, total, 0
        self._order = torch.randperm(around.num_examples, generator=_generator(seed))
        self._generator = _generator(seed, 1 + number)
        self.best, self.winner = around.centre, "centre"
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
        return self.best.loss - self._around.centre.loss

    def _climb(self) -> None:
        early = min(_EARLY_STEPS, self._effort.steps)
        middle = min(_MIDDLE_STEPS, self._effort.steps - early)
        climbs: list[tuple[str, Climb]] = []
        for name, start in self._round_starts():
            climb = Climb(self._around.visit, self._ball, self._around.visit(start))
            self._keep(name, self._advance(climb, early - 1))
            climbs = _highest([*climbs, (name, climb)], _FINALISTS)
        for name, climb in climbs:
            self._keep(name, self._advance(climb, middle))
        for name, climb in _highest(climbs, 1):
            self._keep(name, self._advance(climb, self._effort.steps - early - middle))

    def _round_starts(self) -> Iterator[tuple[str, Tensor]]:
        """Points of the ball to climb from, one at a time."""
        if self._rounds == 0:
            for name, direction in self._starts.items():
                yield name, self._ball.onto_boundary(direction.to(self._around.theta))
        restarts, turn = self._effort.restarts, self._rounds * self._total + self._number
        if not self._around.divisible:
            for number in range(restarts):
                yield f"random {turn * restarts + number + 1}", self._ball.onto_boundary(self._noise())
            return
        examples = (2 * restarts + 1) // 3
        yield from self._screened(turn, examples)
        yield from self._grouped(turn, restarts - examples)

    def _screened(self, turn: int, count: int) -> Iterator[tuple[str, Tensor]]:
        """Ends of ascents of examples' own losses: the most promising one's, and where the mean loss is highest."""
        size = min(self._effort.screened, len(self._order))
        sample = self._order.roll(-turn * size)[:size].sort().values
        screen = Screen(self._around, self._ball, sample, self._generator, keep=_EXAMPLE_ENDS * count)
        for example, rise in zip(sample.tolist(), screen.rises().tolist(), strict=True):
            self.own_rises[example] = max(rise, self.own_rises.get(example, 0.0))
        ends = ((f"example {int(sample[place])}", screen.end(int(place))) for place in screen.promising)
        first = next(ends)
        chosen = [first, *self._highest_ends(ends, count - 1)]
        del screen  # its vectors are not needed while the climbs go on
        yield from chosen

    def _grouped(self, turn: int, count: int) -> Iterator[tuple[str, Tensor]]:
        """Ends of ascents of random tenths of the examples, where the mean loss is highest."""
        number = _GROUP_ENDS * count
        names = (f"group {turn * number + place + 1}" for place in range(number))
        yield from self._highest_ends(((name, self._group_end()) for name in names), count)

    def _group_end(self) -> Tensor:
        visit = self._around.random_part(self._generator)
        start = visit(_INNER_START * self._ball.onto_boundary(self._noise()))
        return Climb(visit, self._ball, start).advance(_GROUP_STEPS - 1, floor=start.loss, tol=self._effort.tol).epsilon

    def _highest_ends(self, ends: Iterable[tuple[str, Tensor]], count: int) -> list[tuple[str, Tensor]]:
        """The ``count`` at which the mean loss is largest."""
        kept: list[tuple[float, str, Tensor]] = []
        for name, end in ends:
            kept = sorted([*kept, (self._around.loss(end), name, end)], key=lambda item: item[0], reverse=True)[:count]
        return [(name, end) for _, name, end in kept]

    def _advance(self, climb: Climb, steps: int) -> Point:
        return climb.advance(steps, floor=self._around.centre.loss, tol=self._effort.tol)

    def _keep(self, name: str, point: Point) -> None:
        if name != "centre":
            self.start_losses[name] = max(point.loss, self.start_losses.get(name, point.loss))
        if point.loss > self.best.loss:
            self.best, self.winner = point, name

    def _noise(self) -> Tensor:
        return self._around.noise(self._generator)


def _highest(climbs: list[tuple[str, Climb]], count: int) -> list[tuple[str, Climb]]:
    return sorted(climbs, key=lambda item: item[1].best.loss, reverse=True)[:count]


def _generator(*path: int) -> torch.Generator:
    """A generator of its own for every path of numbers."""
    (state,) = np.random.SeedSequence([number % 2**63 for number in path]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
