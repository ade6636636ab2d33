"""Searches for the worst case as files of their own: one for each ball, so that another radius repeats none of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from analyses.measures.minima import Subject
from analyses.records import write_sealed
from analyses.records.integrity import is_damaged
from analyses.study import fingerprint
from analyses.study.measure_settings import L2, BallName
from analyses.study.plan import Plan
from landscape import EmpiricalRisk, OwnWorstCases, SharpnessResult, Subspace, join_curve, worst_case_sharpness

_OPTIONS: Mapping[BallName, Mapping[str, Any]] = {
    "l2": {},
    "relative": {"relative": True},
    "elementwise": {"adaptive": "elementwise"},
    "filter": {"adaptive": "filter"},
}
_NUMBERS = ("rho", "loss", "worst_loss", "search_losses", "agreement", "winner", "one_step_loss", "start_losses")
_VECTORS = ("epsilon", "example_rises", "example_weights")
_OWN = ("examples", "rises", "weights")


@dataclass(frozen=True)
class Searched:
    """A worst case, with the radius as the study gives it and the seconds that the search took."""

    rho: float
    result: SharpnessResult
    seconds: float


def searched(
    subject: Subject,
    risk: EmpiricalRisk,
    radii: Sequence[float],
    *,
    ball: BallName = L2,
    space: tuple[str, Subspace] | None = None,
) -> list[Searched]:
    """The worst cases in balls of one shape, ascending in the radius; those that earlier calls left are only joined.

    Args:
        subject: The minimum.
        risk: Its risk.
        radii: In the ball's own units.
        ball: Shape.
        space: Directions allowed and their name; for the l2 ball only.
    """
    ordered = sorted(radii)
    single = [_one(subject, risk, rho, ball, space) for rho in ordered]
    options = dict(_OPTIONS[ball])
    options.pop("relative", None)  # the results' radii are in the weights' units already
    steps = subject.plan.measures.worst_case.steps
    curve = join_curve(risk, [result for result, _ in single], steps=steps, subspace=space and space[1], **options)
    return [Searched(rho, result, seconds) for rho, result, (_, seconds) in zip(ordered, curve, single, strict=True)]


def search_settings(plan: Plan) -> dict[str, Any]:
    """What a search in one ball depends on beside the run, the ball and the space."""
    return plan.measures.worst_case.model_dump(include={"steps", "restarts", "screened", "agreement", "max_passes"})


def worst_case_at(subject: Subject, risk: EmpiricalRisk) -> SharpnessResult:
    """The worst case in the l2 ball of the claims' radius."""
    settings, rho = subject.plan.measures.worst_case, subject.plan.rho
    return next(one.result for one in searched(subject, risk, settings.radii) if one.rho == rho)


def worst_case_settings(plan: Plan) -> list[Any]:
    """What `worst_case_at` depends on beside the run."""
    settings = plan.measures.worst_case
    return [search_settings(plan), settings.radii, plan.rho]


def _one(
    subject: Subject, risk: EmpiricalRisk, rho: float, ball: BallName, space: tuple[str, Subspace] | None
) -> tuple[SharpnessResult, float]:
    effort = search_settings(subject.plan)
    name, subspace = space or ("full", None)
    described = {"effort": effort, "ball": ball, "rho": rho, "space": name}
    path = subject.place / f"worst_case-{ball}-{name}-{fingerprint(described)}.safetensors"
    if not path.exists() or is_damaged(path):
        began = time.perf_counter()
        result = worst_case_sharpness(risk, rho, subspace=subspace, seed=subject.cell.seed, **_OPTIONS[ball], **effort)
        write_sealed(path, partial(_save, result, time.perf_counter() - began))
    return _load(path, risk.device)


def _save(result: SharpnessResult, seconds: float, path: Path) -> None:
    tensors = {name: getattr(result, name).contiguous() for name in _VECTORS}
    tensors |= {f"own/{name}": getattr(result.own, name) for name in _OWN}
    numbers = {name: getattr(result, name) for name in (*_NUMBERS, "num_passes")} | {"seconds": seconds}
    save_file(tensors, path, metadata={"numbers": json.dumps(numbers)})


def _load(path: Path, device: torch.device) -> tuple[SharpnessResult, float]:
    with safe_open(path, framework="pt") as file:
        numbers = json.loads(file.metadata()["numbers"])
        vectors = {name: file.get_tensor(name) for name in _VECTORS}
        vectors["epsilon"] = vectors["epsilon"].to(device)
        own = OwnWorstCases(**{name: file.get_tensor(f"own/{name}") for name in _OWN})
    seconds = numbers.pop("seconds")
    numbers["search_losses"] = tuple(numbers["search_losses"])
    return SharpnessResult(**numbers, **vectors, own=own), seconds
