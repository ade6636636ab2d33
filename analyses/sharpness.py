"""Worst-case loss around a minimum: over all weights, and inside the spaces that adapters open."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from analyses.minima import Progress, Rows, Subject, factor_subspace, low_rank_factors, measured_vectors, store_vectors
from bilora.adapters import AUXILIARY, PRIMARY
from landscape import EmpiricalRisk, SharpnessResult, Subspace, sharpness_curve
from landscape.losses import zero_one


def sharpness(subject: Subject, progress: Progress) -> Rows:
    """Loss rise in balls of growing radius, over all weights and inside the run's LoRA subspace.

    Both searches also start from the top eigenvectors, with either sign, and from what the run's own auxiliary last
    added to the weights; in the record of a rise, ``algorithm`` names the start that won. The training error at the
    worst point found stands beside the rise.
    """
    risk = subject.risk()
    errors = subject.risk(loss=zero_one)
    spaces = {"full": None, "lora": factor_subspace(risk.layout, low_rank_factors(subject, PRIMARY), "tangent")}
    worst = {}
    for index, (name, space) in enumerate(spaces.items()):
        curve, seconds = _curve(subject, risk, space)
        for result in curve:
            if result.rho == subject.study.claims.rho:
                worst[name] = result.epsilon
            common = {"rho": result.rho, "subspace": name}
            yield common | _rise(result, curve, seconds)
            yield common | {"measure": "one_step_rise", "value": result.one_step_rise, "num_passes": 2}
            yield common | {"measure": "worst_case_disagreement", "value": result.disagreement}
            error = errors.loss(errors.theta + result.epsilon)
            yield common | {"measure": "worst_case_error", "value": error}
        progress(index + 1, len(spaces))
    store_vectors(subject, "sharpness", worst)


def recovery(subject: Subject, progress: Progress) -> Rows:
    """The same loss rise inside the tangent space of the auxiliary, and inside a random one of the same ranks.

    Over the rise in the full ball it is the share of sharpness that a perturbation of the auxiliary's form can see:
    all first-order changes of B2·A2 at the end of training. The random space has bases from the Haar measure.
    """
    risk = subject.risk()
    factors = low_rank_factors(subject, AUXILIARY)
    generator = torch.Generator().manual_seed(subject.cell.seed)
    random = {
        name: (torch.randn(a.shape, generator=generator), torch.randn(b.shape, generator=generator))
        for name, (a, b) in factors.items()
    }
    for index, (name, pairs) in enumerate({"auxiliary": factors, "random": random}.items()):
        curve, seconds = _curve(subject, risk, factor_subspace(risk.layout, pairs, "tangent"))
        for result in curve:
            yield {"rho": result.rho, "subspace": name} | _rise(result, curve, seconds)
        progress(index + 1, 2)


def _curve(subject: Subject, risk: EmpiricalRisk, space: Subspace | None) -> tuple[list[SharpnessResult], float]:
    """Rises at all radii of the study, and the seconds that the search took."""
    settings = subject.study.measures.worst_case
    starts: dict[str, Tensor] = {}
    for number, vector in enumerate(
        measured_vectors(subject, "curvature")["eigenvectors"][: settings.eigenvector_starts]
    ):
        starts |= {f"+v{number + 1}": vector, f"-v{number + 1}": -vector}
    if AUXILIARY in subject.minimum.factors:
        factors = subject.minimum.factors[AUXILIARY]
        added = risk.layout.join({name: b @ a for name, (a, b) in factors.items()})
        if added.any():
            starts["auxiliary"] = added
    began = time.perf_counter()
    curve = sharpness_curve(
        risk,
        settings.radii,
        steps=settings.steps,
        restarts=settings.restarts,
        subspace=space,
        starts=starts,
        halving=settings.halving,
        seed=subject.cell.seed,
    )
    return curve, time.perf_counter() - began


def _rise(result: SharpnessResult, curve: list[SharpnessResult], seconds: float) -> dict[str, object]:
    """Row of one radius, with its part of the search's time."""
    return {
        "measure": "worst_case_rise",
        "value": result.rise,
        "algorithm": result.winner,
        "num_passes": result.num_passes,
        "seconds": seconds * result.num_passes / sum(other.num_passes for other in curve),
    }
