"""What the loss looks like around a minimum: profiles, a surface, the quadratic model, and barriers between minima."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from analyses.measures.base import Measure
from analyses.measures.curvature import CURVATURE, eigenpairs
from analyses.measures.minima import Progress, Rows, Subject, load_subject, low_rank_factors
from analyses.measures.worst_cases import worst_case_at, worst_case_settings
from analyses.records import records_frame, write_records
from analyses.study import Cell, Study, StudyFolder
from analyses.study.measure_settings import SurfaceSettings
from analyses.training.recording import load_recorded_snapshots
from analyses.training.runs import environment, read_run
from bilora.adapters import PRIMARY
from bilora.measured import factor_subspace
from landscape import (
    DenseOperator,
    EmpiricalRisk,
    HessianOperator,
    RestrictedOperator,
    linear_path,
    loss_line,
    loss_surface,
    orthonormal_basis,
    random_direction,
    split_direction,
    trajectory_plane,
    trust_region_maximum,
)

_SAME_WAY = 0.02
"""Of an update, what factors stored in half precision may leave over."""


def surface(subject: Subject, progress: Progress) -> Rows:
    """Loss along four unit directions, over one plane, and the rise that the quadratic model predicts.

    The plane is spanned by the parts of the worst case found at the claims' radius inside and outside the run's LoRA
    subspace.
    """
    settings, rho = subject.plan.measures.surface or SurfaceSettings(), subject.plan.rho
    risk = subject.risk()
    space = factor_subspace(risk.layout, low_rank_factors(subject, PRIMARY), "tangent")
    worst = worst_case_at(subject, risk).epsilon
    _, eigenvectors = eigenpairs(subject)
    noise_inside, noise_outside = split_direction(
        random_direction(risk, seed=subject.cell.seed, normalize="none"), space
    )
    steep_inside, steep_outside = split_direction(worst, space)
    directions = {
        "random, LoRA subspace": noise_inside,
        "random, its complement": noise_outside,
        "top eigenvector": eigenvectors[0],
        "worst case": _unit(worst),
    }
    reach = settings.reach * rho
    for name, direction in directions.items():
        line = loss_line(risk, direction, torch.linspace(-reach, reach, settings.line_points, dtype=torch.float64))
        for alpha, loss in zip(line.alphas, line.losses, strict=True):
            yield {"measure": "loss_profile", "subspace": name, "alpha": float(alpha), "value": float(loss)}
    progress(1, 3)
    grid = torch.linspace(-reach, reach, settings.grid_points, dtype=torch.float64)
    plane = loss_surface(risk, steep_inside, steep_outside, grid, grid)
    for (i, alpha), (j, beta) in itertools.product(enumerate(grid.tolist()), enumerate(grid.tolist())):
        yield {
            "measure": "loss_surface", "subspace": "worst cases", "alpha": alpha, "beta": beta,
            "value": float(plane.losses[i, j]),
        }  # fmt: skip
    progress(2, 3)
    operator = HessianOperator(risk, graph_budget=subject.graph_budget)
    yield from quadratic_rises(operator, eigenvectors, subject.plan.measures.worst_case.radii)
    progress(3, 3)


def trajectory(subject: Subject, progress: Progress) -> Rows:
    """The way of the merged weights to the minimum in its own principal plane, and the loss over that plane.

    Coordinates are relative to the minimum. A run without snapshots of a primary's factors leaves no rows, and so does
    one whose merged weights are no multiple of their products, as under DoRA.
    """
    risk, run = subject.risk(), subject.run
    snapshots = load_recorded_snapshots(run.recording)
    if not any(name.startswith(f"{PRIMARY}/") for factors in snapshots.values() for name in factors):
        return
    products = torch.stack([_product(risk, factors) for factors in snapshots.values()])
    scaling = _scaling(products, risk.layout.join(subject.minimum.updates))
    if scaling is None:
        return
    points = scaling * products
    plane = trajectory_plane(points)
    for step, (alpha, beta) in zip(snapshots, plane.coordinates.tolist(), strict=True):
        yield {"measure": "trajectory", "step": step, "alpha": alpha, "beta": beta}
    for number, share in enumerate(plane.explained_variance.tolist(), 1):
        yield {"measure": "trajectory_variance", "index": number, "value": share}
    count = (subject.plan.measures.surface or SurfaceSettings()).trajectory_points
    low, high = plane.coordinates.min(dim=0).values, plane.coordinates.max(dim=0).values
    margin = 0.15 * (high - low).max()
    alphas, betas = (
        torch.linspace(float(a - margin), float(b + margin), count) for a, b in zip(low, high, strict=True)
    )
    losses = loss_surface(risk, plane.basis[:, 0], plane.basis[:, 1], alphas, betas).losses
    for (i, alpha), (j, beta) in itertools.product(enumerate(alphas.tolist()), enumerate(betas.tolist())):
        yield {"measure": "trajectory_loss", "alpha": alpha, "beta": beta, "value": float(losses[i, j])}
    progress(1, 1)


def _scaling(products: Tensor, update: Tensor) -> float | None:
    """By what an adapter's products (T, n) are multiplied to give the update (n,) between the first and the last.

    None where no number does, up to the rounding of stored factors.
    """
    way = (products[-1] - products[0]).double()
    length = float(way.square().sum())
    if not length > 0:
        return None
    scaling = float(way @ update.double()) / length
    left = float((update.double() - scaling * way).norm())
    return scaling if left <= _SAME_WAY * float(update.double().norm()) else None


def _product(risk: EmpiricalRisk, factors: dict[str, Tensor]) -> Tensor:
    layers = [name.removesuffix(".weight") for name in risk.layout.names]
    return risk.layout.join(
        {f"{layer}.weight": factors[f"{PRIMARY}/{layer}/B"] @ factors[f"{PRIMARY}/{layer}/A"] for layer in layers}
    )


def quadratic_rises(operator: HessianOperator, eigenvectors: Tensor, radii: list[float]) -> Rows:
    """Predicted and realised rise at the quadratic model's maximiser, for every radius.

    The model is solved exactly in the span of the gradient, its image under the Hessian and the dominant eigenvectors
    (k, n): a lower bound of its maximum over the whole ball.
    """
    risk = operator.risk
    loss, gradient = risk.loss_and_gradient()
    image = operator.matvec(gradient)
    basis = orthonormal_basis(torch.stack([_unit(gradient), _unit(image), *eigenvectors], dim=1))
    restricted = DenseOperator(RestrictedOperator(operator, basis).to_dense())
    for rho in sorted(radii):
        model = trust_region_maximum(restricted, basis.T @ gradient, rho)
        realised = risk.loss(risk.theta + basis @ model.epsilon) - loss
        common = {"rho": rho, "subspace": "gradient and dominant eigenvectors"}
        yield common | {"measure": "quadratic_rise", "value": model.predicted_rise}
        yield common | {"measure": "quadratic_realised_rise", "value": realised}


def measure_barriers(study: Study, folder: StudyFolder, progress: Progress) -> None:
    """Barriers on straight lines between the minima of all pairs of methods at the first seed; written as records.

    All weights that training moved somewhere are interpolated, the head and the biases of whole fine-tuning too.
    """
    cells = [Cell(method, 0, size) for size in study.train_sizes for method in study.methods]
    done = [cell for cell in cells if not read_run(folder.run(study, cell))["diverged"]]
    pairs = [(a, b) for a, b in itertools.combinations(done, 2) if a.train_size == b.train_size]
    settings = study.measures.surface or SurfaceSettings()
    rows: list[dict[str, Any]] = []
    risks = {cell: _of_all_weights(load_subject(study, cell, folder)) for cell in done}
    for number, (a, b) in enumerate(pairs):
        path = linear_path(risks[a], risks[a].theta, risks[b].theta, num_points=settings.path_points)
        fixed = {"study": study.name, "seed": a.seed, "train_size": a.train_size, "measure": "loss_barrier"}
        rows.append(fixed | {"method": a.method, "other": b.method, "value": path.barrier})
        progress(number + 1, len(pairs))
    write_records(records_frame(rows), folder.barriers(study), environment())


def _of_all_weights(subject: Subject) -> EmpiricalRisk:
    loss = getattr(subject.task, "loss", None)
    return EmpiricalRisk(subject.minimum.model, subject.batches(), loss, lambda name: True, check=False)


def _unit(vector: Tensor) -> Tensor:
    norm = vector.double().norm()
    return (vector.double() / norm).to(vector.dtype) if norm > 0 else vector


SURFACE = Measure(
    "surface",
    surface,
    lambda plan: [
        plan.measures.surface and plan.measures.surface.model_dump(exclude={"trajectory_points"}),
        worst_case_settings(plan),
    ],
    needs=(CURVATURE,),
    applies=lambda study, cell: study.measures.surface is not None,
    default_seeds=1,
    version=2,
)
TRAJECTORY = Measure(
    "trajectory",
    trajectory,
    lambda plan: plan.measures.surface and plan.measures.surface.trajectory_points,
    applies=lambda study, cell: study.measures.surface is not None,
    default_seeds=1,
    recorded=True,
)
