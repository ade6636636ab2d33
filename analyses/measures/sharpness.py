"""Worst-case loss around a minimum: over all weights, and inside the spaces that adapters open."""

from __future__ import annotations

import math
from typing import Any

import torch

from analyses.measures.base import Measure
from analyses.measures.minima import Progress, Rows, Subject, adapters_with_space, low_rank_factors
from analyses.measures.worst_cases import Searched, search_settings, searched
from analyses.study.measure_settings import L2
from analyses.study.plan import Plan
from bilora.adapters import AUXILIARY, PRIMARY
from bilora.measured import factor_subspace
from landscape import average_sharpness

_FEW = 5


def sharpness(subject: Subject, progress: Progress) -> Rows:
    """Loss rise in balls of growing radius over all weights.

    Two independent searches with the same effort for every method; in the record of a rise, ``algorithm`` names the
    start that won. Beside the rise stand what each search found, how the rise is spread over the examples, the mean of
    the examples' own worst cases, the average case, and the training error at the worst point.
    """
    settings = subject.plan.measures.worst_case
    risk, errors = subject.risk(), subject.errors()
    curves = settings.radii_by_ball
    for number, (ball, radii) in enumerate(curves.items(), 1):
        for found in searched(subject, risk, radii, ball=ball):
            common = {"ball": ball, "rho": found.rho, "subspace": "full"}
            yield from (common | row for row in _rows(found))
            if errors is not None:
                error = errors.loss(errors.theta + found.result.epsilon)
                yield common | {"measure": "worst_case_error", "value": error}
        progress(number, len(curves) + 1)
    for rho in settings.radii:
        # Noise as long as the ball's radius: E‖epsilon‖² = sigma² n.
        sigma = rho / math.sqrt(risk.num_params)
        average = average_sharpness(risk, sigma, num_samples=settings.average_samples, seed=subject.cell.seed)
        common = {"ball": L2, "rho": rho, "subspace": "full", "measure": "average_case_rise"}
        yield common | {"value": average.rise, "stderr": average.stderr, "num_passes": average.num_passes}
    progress(len(curves) + 1, len(curves) + 1)


def recovery(subject: Subject, progress: Progress) -> Rows:
    """The same loss rise inside the tangent spaces of the primary, of the auxiliary, and of random factors.

    Over the rise in the full ball it is the share of sharpness that a perturbation of that form can see: all
    first-order changes of B·A at the end of training. The random space has the auxiliary's ranks and bases from the
    Haar measure; methods without an auxiliary, or with one that ends at zero, have the primary's space alone
    (``subspace`` "lora").
    """
    risk = subject.risk()
    spaces = {"lora": low_rank_factors(subject, PRIMARY)}
    if AUXILIARY in adapters_with_space(subject):
        auxiliary = low_rank_factors(subject, AUXILIARY)
        generator = torch.Generator().manual_seed(subject.cell.seed)
        random = {
            name: (torch.randn(a.shape, generator=generator), torch.randn(b.shape, generator=generator))
            for name, (a, b) in auxiliary.items()
        }
        spaces |= {"auxiliary": auxiliary, "random": random}
    radii = subject.plan.measures.worst_case.inside_radii
    for index, (name, pairs) in enumerate(spaces.items(), 1):
        space = factor_subspace(risk.layout, pairs, "tangent")
        for found in searched(subject, risk, radii, space=(name, space)):
            common = {"ball": L2, "rho": found.rho, "subspace": name}
            yield from (common | row for row in _rows(found))
        progress(index, len(spaces))


def _rows(found: Searched) -> Rows:
    """What one ball's searches found."""
    result = found.result
    cost: dict[str, Any] = {"num_passes": result.num_passes, "seconds": found.seconds}
    yield {"measure": "worst_case_rise", "value": result.rise, "algorithm": result.winner} | cost
    for number, rise in enumerate(result.search_rises, 1):
        yield {"measure": "worst_case_search_rise", "index": number, "value": rise}
    yield {"measure": "worst_case_gap", "value": result.gap}
    yield {"measure": "worst_case_converged", "value": float(result.converged)}
    yield {"measure": "effective_examples", "value": result.effective_examples}
    yield {"measure": "largest_share", "index": 1, "value": result.carried_by(1)}
    yield {"measure": "largest_share", "index": _FEW, "value": result.carried_by(_FEW)}
    own = result.own
    yield {"measure": "own_worst_case_examples", "value": len(own.rises)}
    yield {"measure": "own_worst_case_rise", "value": own.mean, "stderr": own.stderr}
    yield {"measure": "one_step_rise", "value": result.one_step_rise, "num_passes": 2}


def _effort(plan: Plan) -> dict[str, Any]:
    """Settings of `sharpness`."""
    settings = plan.measures.worst_case
    return search_settings(plan) | {"radii": settings.radii_by_ball, "average_samples": settings.average_samples}


SHARPNESS = Measure("sharpness", sharpness, _effort)
RECOVERY = Measure(
    "recovery",
    recovery,
    lambda plan: search_settings(plan) | {"radii": plan.measures.worst_case.inside_radii},
    version=2,
)
