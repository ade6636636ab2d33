"""Worst-case loss in a ball around a minimum, as two independent searches find it, and its curve over the radius."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from landscape.asking import expect_count, expect_number, expect_risk, expect_seed, expect_vector
from landscape.risk import EmpiricalRisk
from landscape.sharpness.ascent import Climb
from landscape.sharpness.balls import Adaptive, Ball, Norm, ball_around
from landscape.sharpness.result import OwnWorstCases, SharpnessResult, search_gap
from landscape.sharpness.search import Effort, Search
from landscape.sharpness.shelf import Kept, Shelf, Storage, held
from landscape.sharpness.surroundings import Surroundings
from landscape.showing import kind_of
from landscape.subspaces import Subspace, space_of


def worst_case_sharpness(
    risk: EmpiricalRisk,
    rho: float,
    *,
    steps: int = 20,
    restarts: int = 7,
    screened: int = 128,
    norm: Norm = "l2",
    adaptive: Adaptive = "none",
    relative: bool = False,
    subspace: Subspace | Tensor | None = None,
    starts: Mapping[str, Tensor] | None = None,
    agreement: float = 0.05,
    max_passes: int = 1000,
    tol: float = 1e-4,
    storage: Storage = "auto",
    seed: int = 0,
) -> SharpnessResult:
    r"""Search :math:`\max_{\|\epsilon\|\le\rho} L(\theta+\epsilon)` over the whole data set, twice.

    Two independent searches (`landscape.sharpness.search.Search`: other random numbers, other samples and groups of
    examples) run until the poorer has come within ``agreement`` of the best rise known, or else their effort is
    doubled while ``max_passes`` allows. The result is the larger loss: a **lower bound** of the maximum, never below
    SAM's one-step point, where the linearised loss is largest (Foret et al. 2021, arXiv 2010.01412, equation 2), nor,
    to rounding, below any start. Its ``gap`` is the search error that the two searches show, and ``converged`` says
    whether they agree.

    Memory: seven vectors of the size of theta, beside what a pass over the data takes (the weights at which it is, and
    the gradient); on a device or where theta is small also what an example of its own takes for each that goes through
    the model together. About 3 ``restarts`` + 16 further vectors wait where ``storage`` says.

    Args:
        risk: The mean loss over the data.
        rho: Radius, in the units of the weights, at least 0.
        steps: Steps of the climb that a round brings to its end; each costs one forward-backward pass.
        restarts: Two thirds of the number of starts of a round of each search: points to which short ascents of single
            examples' losses lead, and of random tenths of the data for every third. All are lifted by the examples that
            lose most there; up to eight that are then apart and close to the highest are climbed from.
        screened: Most examples whose own losses a round of each search ascends before that, about 30 single-example
            passes each; the two searches' samples are disjoint if there are enough examples.
        norm: ``l2``, ``layerwise`` or ``linf``; see `landscape.sharpness.balls.Ball`.
        adaptive: ``none``, ``elementwise`` or ``filter``; see `landscape.sharpness.balls.ball_around`.
        relative: Measure the radius in units of the weights' norm.
        subspace: Directions allowed: an orthonormal basis (n, k) or an object with ``project``. Default: all.
        starts: Further starts of the first search: directions (n,) by name, each scaled onto the boundary; say top
            eigenvectors and their negatives, or the second-order model's maximiser.
        agreement: Gap between the searches, as a share of the rise, below which they agree.
        max_passes: Passes over the data that both searches together may take; the first round of each always runs.
        tol: A climb ends when the linearised gain left is at most this share of the rise.
        storage: Where vectors wait that the search does not work on: in ``memory``, or on ``disk`` in temporary files;
            ``auto`` is memory as long as they would take at most a quarter of what is free. The numbers are the same.
        seed: Seed of all random choices.

    Returns:
        The largest loss met, where, from which start, how far the two searches differ and which examples carry it.

    Raises:
        ValueError: rho is negative or not finite, a count or ``agreement`` is out of range, or options exclude each
            other.
        FloatingPointError: The loss is not finite at the centre, or its gradient is not where the loss is.
    """
    return sharpness_curve(
        risk,
        [rho],
        steps=steps,
        restarts=restarts,
        screened=screened,
        norm=norm,
        adaptive=adaptive,
        relative=relative,
        subspace=subspace,
        starts=starts,
        agreement=agreement,
        max_passes=max_passes,
        tol=tol,
        storage=storage,
        seed=seed,
    )[0]


def sharpness_curve(
    risk: EmpiricalRisk,
    rhos: Sequence[float],
    *,
    steps: int = 20,
    restarts: int = 7,
    screened: int = 128,
    norm: Norm = "l2",
    adaptive: Adaptive = "none",
    relative: bool = False,
    subspace: Subspace | Tensor | None = None,
    starts: Mapping[str, Tensor] | None = None,
    agreement: float = 0.05,
    max_passes: int = 1000,
    tol: float = 1e-4,
    storage: Storage = "auto",
    seed: int = 0,
) -> list[SharpnessResult]:
    """Worst-case losses at several radii; the arguments are `worst_case_sharpness`'s, ``max_passes`` for each radius.

    Every radius is searched by itself. Then neighbours help each other: each radius's maximiser, scaled onto the next
    ball's boundary, is climbed from if it beats what was found there. A smaller ball's maximiser belongs to the larger
    ball, so that the curve never falls. What neighbours bring counts in the gap, as a rise that the searches missed.

    Returns:
        One result per radius, in ascending order. Passes spent on a radius are counted at it, the centre's at the
        first.
    """
    expect_risk(risk)
    if hasattr(rhos, "tolist"):
        raise ValueError(f"rhos: expected a list of radii, got {kind_of(rhos)}; pass rhos.tolist()")
    if not isinstance(rhos, Sequence) or isinstance(rhos, str):
        raise ValueError(f"rhos: expected a list of radii, got {rhos!r}; use [rho], or worst_case_sharpness for one")
    for rho in rhos:
        expect_number("rho", rho, instead="; use sharpness_curve for several radii")
    if not rhos:
        raise ValueError("rhos: expected at least one radius, got none")
    _check_effort(steps, restarts, screened, max_passes, agreement)
    expect_number("tol", tol)
    if not tol >= 0:
        raise ValueError(f"tol: expected a share of the rise, at least 0, got {tol}")
    expect_seed(seed)
    space = _space(risk, subspace)
    balls = [
        ball_around(risk, rho, norm=norm, adaptive=adaptive, relative=relative, subspace=space) for rho in sorted(rhos)
    ]
    _check_starts(risk, {} if starts is None else starts)
    waiting = (3 * restarts + 16) * risk.num_params * risk.dtype.itemsize
    around = Surroundings(risk, Shelf(storage, waiting, risk.device))
    effort = Effort(steps, restarts, screened, tol)
    given = {name: held(direction) for name, direction in (starts or {}).items()}
    results = [_search_twice(around, ball, effort, agreement, max_passes, given, seed) for ball in balls]
    return _joined(around, results, balls, steps, tol)


def join_curve(
    risk: EmpiricalRisk,
    results: Sequence[SharpnessResult],
    *,
    steps: int = 20,
    norm: Norm = "l2",
    adaptive: Adaptive = "none",
    subspace: Subspace | Tensor | None = None,
    tol: float = 1e-4,
) -> list[SharpnessResult]:
    """Let results that were found radius by radius help each other, as `sharpness_curve` does; no search is repeated.

    One pass a neighbour, and a climb of at most ``steps`` where it is the better start.

    Args:
        risk: The risk of the results.
        results: Of `worst_case_sharpness`, for balls of one shape.
        steps: See `worst_case_sharpness`; so are the others.
        norm: Of the results' balls.
        adaptive: Of the results' balls.
        subspace: Of the results' balls.
        tol: Of a climb.

    Returns:
        The results in ascending order of the radius; the rise never falls.
    """
    space = _space(risk, subspace)
    ordered = sorted(results, key=lambda result: result.rho)
    balls = [
        ball_around(risk, result.rho, norm=norm, adaptive=adaptive, relative=False, subspace=space)
        for result in ordered
    ]
    found = [_Found(replace(result, epsilon=_AWAY), held(result.epsilon)) for result in ordered]
    return _joined(Surroundings(risk), found, balls, steps, tol) if found else []


# Where theta is large a point is what memory is full of: the results' wait on the shelf until all are found.
_AWAY = torch.empty(0)


@dataclass(frozen=True)
class _Found:
    """A result without its point, and what gives the point (n,)."""

    result: SharpnessResult
    epsilon: Kept


def _joined(
    around: Surroundings, results: Sequence[_Found], balls: Sequence[Ball], steps: int, tol: float
) -> list[SharpnessResult]:
    """Help every radius by the next smaller one, then by the next larger one."""
    joined = list(results)
    for index in range(1, len(joined)):
        joined[index] = _helped(around, joined[index], balls[index], joined[index - 1], "smaller radius", steps, tol)
    for index in range(len(joined) - 2, -1, -1):
        joined[index] = _helped(around, joined[index], balls[index], joined[index + 1], "larger radius", steps, tol)
    for index in range(1, len(joined)):
        inside, result = joined[index - 1].result, joined[index].result
        if result.worst_loss < inside.worst_loss:
            higher = replace(
                result, worst_loss=inside.worst_loss, example_rises=inside.example_rises, winner="smaller radius"
            )
            joined[index] = _Found(higher, joined[index - 1].epsilon)
    return [replace(found.result, epsilon=found.epsilon().contiguous()) for found in joined]


def _search_twice(
    around: Surroundings,
    ball: Ball,
    effort: Effort,
    agreement: float,
    max_passes: int,
    starts: Mapping[str, Kept],
    seed: int,
) -> _Found:
    """Run two searches, doubling their rounds until they agree or the next round would exceed ``max_passes``."""
    before = around.counter.num_passes
    one_step = around.visit(ball.extreme(around.centre_gradient()))
    one_step_loss, one_step_epsilon = one_step.loss, around.shelf.put(one_step.epsilon)
    first = {"gradient": one_step_epsilon} | dict(starts)
    del one_step  # its gradient is a vector, too
    searches: list[Search] = []
    if ball.rho > 0:
        searches = [
            Search(around, ball, effort, seed=seed, number=number, total=2, starts=own)
            for number, own in enumerate((first, {}))
        ]
    rounds, more = 0, 1
    while searches and more > 0:
        for search in searches:
            search.run(more)
        rounds += more
        spent = around.counter.num_passes - before
        if search_gap((searches[0].rise, searches[1].rise), max(search.rise for search in searches)) <= agreement:
            break
        more = min(rounds, int((max_passes - spent) / (spent / rounds)))
    # A search in which nothing rose has stayed at the centre.
    zero = torch.zeros((), dtype=around.risk.dtype, device=around.risk.device)
    centre = held(zero.expand(around.risk.num_params))
    met = [(search.best_loss, search.winner, search.best) for search in searches if search.winner != "centre"]
    met += [(one_step_loss, "gradient", one_step_epsilon)] if searches else []
    worst_loss, winner, where = max([(around.centre_loss, "centre", centre), *met], key=lambda point: point[0])
    losses = [search.best_loss for search in searches] or [around.centre_loss] * 2
    own_rises = _largest(search.own_rises for search in searches)
    examples = torch.tensor(sorted(own_rises), dtype=torch.long)
    result = SharpnessResult(
        rho=ball.rho,
        loss=around.centre_loss,
        worst_loss=worst_loss,
        epsilon=_AWAY,
        search_losses=(losses[0], losses[1]),
        agreement=agreement,
        winner=winner,
        one_step_loss=one_step_loss,
        start_losses=_largest(search.start_losses for search in searches),
        example_rises=around.rises(where()),
        example_weights=around.weights,
        own=OwnWorstCases(
            examples,
            torch.tensor([own_rises[example] for example in examples.tolist()], dtype=torch.float64),
            around.weights[examples],
        ),
        num_passes=math.ceil(around.counter.num_passes - before),
    )
    return _Found(result, where)


def _helped(
    around: Surroundings, found: _Found, ball: Ball, neighbour: _Found, name: str, steps: int, tol: float
) -> _Found:
    """Climb from a neighbouring radius's maximiser, scaled onto the boundary, if it beats what was found."""
    result, epsilon = found.result, found.epsilon
    if ball.rho == 0 or neighbour.result.rise == 0:
        return found
    before = around.counter.num_passes
    start = around.visit(ball.onto_boundary(neighbour.epsilon()))
    if start.loss > result.worst_loss:
        climb = Climb(around.visit, ball, start, around.shelf)
        del start  # the climb has it
        loss = climb.advance(steps, floor=around.centre_loss, tol=tol)
        epsilon = climb.epsilon
        result = replace(
            result,
            worst_loss=loss,
            winner=name,
            start_losses=dict(result.start_losses) | {name: loss},
            example_rises=around.rises(epsilon()),
        )
    spent = math.ceil(around.counter.num_passes - before)
    return _Found(replace(result, num_passes=result.num_passes + spent), epsilon)


_Key = TypeVar("_Key")


def _largest(tables: Iterable[Mapping[_Key, float]]) -> dict[_Key, float]:
    """The largest value of each key."""
    largest: dict[_Key, float] = {}
    for table in tables:
        for key, value in table.items():
            largest[key] = max(value, largest.get(key, value))
    return largest


def _space(risk: EmpiricalRisk, subspace: Subspace | Tensor | None) -> Subspace | None:
    if isinstance(subspace, Tensor) and subspace.shape[:1] != (risk.num_params,):
        raise ValueError(
            f"subspace: expected a basis of shape ({risk.num_params}, k), a row a selected weight, got "
            f"{tuple(subspace.shape)}"
        )
    return None if subspace is None else space_of(subspace)


def _check_effort(steps: int, restarts: int, screened: int, max_passes: int, agreement: float) -> None:
    counts = {"steps": steps, "restarts": restarts, "screened": screened, "max_passes": max_passes}
    for name, count in counts.items():
        expect_count(name, count)
    expect_number("agreement", agreement)
    if not 0 <= agreement < 1:
        raise ValueError(f"agreement: expected a share of the rise, 0 <= agreement < 1, got {agreement}")


_NAMED = ("gradient", "centre", "smaller radius", "larger radius")


def _check_starts(risk: EmpiricalRisk, starts: Mapping[str, Tensor]) -> None:
    if not isinstance(starts, Mapping):
        raise ValueError(f"starts: expected directions by name, got {kind_of(starts)}; pass {{'mine': direction}}")
    for name, direction in starts.items():
        if name in _NAMED:
            raise ValueError(f"starts: {name!r} is what the search calls a start of its own; give yours another name")
        expect_vector(f"starts[{name!r}]", direction, risk.num_params)
        if not bool(direction.isfinite().all()):
            raise ValueError(f"starts[{name!r}]: expected finite entries, got inf or nan")
