"""How much of the dominant curvature the adapters' subspaces hold, against chance and against the best they could."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from analyses.minima import Progress, Rows, Subject, low_rank_factors, measured_vectors
from analyses.records import read_records
from bilora.adapters import AUXILIARY, PRIMARY
from landscape import (
    HessianOperator,
    LowRankSubspace,
    ProjectedOperator,
    captured_energy,
    lanczos,
    orthonormal_basis,
    top_singular_bases,
)
from landscape import (
    alignment as align,
)
from landscape.subspaces import Kind

GRADIENT = "gradient"
KINDS: tuple[Kind, ...] = ("column", "row", "core", "tangent")
WORST_CASE = "worst case"


def alignment(subject: Subject, progress: Progress) -> Rows:
    """Shares of the eigenvectors and of the worst case in the spaces of the adapters and of the gradient.

    ``captured_energy`` and its null and optimum are those of the column space of the auxiliary (of the primary for
    methods without one), by layer and over all. The ``alignment`` measures are over all layers, for every kind of
    subspace and for each of the factors (column ``other``); ``k`` 0 is the worst case at the claims' radius. The
    p-value and z-score of the first eigenvector come from random bases of the same ranks.
    """
    vectors = measured_vectors(subject, "curvature")["eigenvectors"]
    yield from captured_by_layer(subject, vectors)
    progress(1, 3)
    risk = subject.risk()
    subspaces = subspaces_of(subject, risk.gradient())
    headline = AUXILIARY if AUXILIARY in subspaces else PRIMARY
    directions = {0: measured_vectors(subject, "sharpness")["full"], **dict(enumerate(vectors, 1))}
    weights = _absolute_eigenvalues(subject)
    for name, kinds in subspaces.items():
        for kind, subspace in kinds.items():
            common = {"other": name, "subspace": kind, "layer": "all"}
            weighted = 0.0
            for k, direction in directions.items():
                if not direction.any():
                    continue
                tested = k == 1 and name == headline
                samples = subject.study.measures.alignment.null_samples if tested else 0
                share = align(direction, subspace, num_samples=samples, seed=subject.cell.seed).pooled
                yield common | {"measure": "alignment", "k": k, "value": share.captured}
                yield common | {"measure": "alignment_expected", "k": k, "value": share.expected}
                yield common | {"measure": "alignment_optimum", "k": k, "value": share.optimum}
                if tested:
                    yield common | {"measure": "alignment_z_score", "k": k, "value": share.z_score}
                    yield common | {"measure": "alignment_p_value", "k": k, "value": share.p_value}
                weighted += weights.get(k, 0.0) * share.captured
            yield common | {"measure": "alignment_weighted", "value": weighted / sum(weights.values())}
    progress(2, 3)
    operator = HessianOperator(risk, graph_budget=subject.graph_budget)
    for kind in ("column", "tangent"):
        found = lanczos(ProjectedOperator(operator, subspaces[headline][kind]), 1, which="LM", tol=1e-2, seed=0)
        where = {"other": headline, "subspace": kind}
        yield where | {"measure": "restricted_eigenvalue", "k": 1, "value": float(found.eigenvalues[0])}
        yield where | {"measure": "restricted_residual", "k": 1, "value": float(found.residuals[0])}
    progress(3, 3)


def captured_by_layer(subject: Subject, vectors: Tensor) -> Rows:
    """Share of each eigenvector's block in the column space of the auxiliary or the primary, by layer and pooled."""
    layout = subject.risk().layout
    factors = low_rank_factors(subject, AUXILIARY if AUXILIARY in subject.minimum.factors else PRIMARY)
    bases = {name: orthonormal_basis(b) for name, (_, b) in factors.items()}
    for index, vector in enumerate(vectors):
        totals = {"captured_energy": 0.0, "captured_energy_null": 0.0, "captured_energy_optimum": 0.0}
        norm = float(vector.double().square().sum())
        for name, block in layout.split(vector).items():
            basis = bases[name]
            rank, out = basis.shape[1], block.shape[0]
            singular = torch.linalg.svdvals(block.double()).square()
            shares = {
                "captured_energy": captured_energy(block, basis),
                "captured_energy_null": rank / out,
                "captured_energy_optimum": float(singular[:rank].sum() / singular.sum()),
            }
            weight = float(block.double().square().sum()) / norm
            common = {"k": index + 1, "layer": name.removesuffix(".weight"), "subspace": "column"}
            for measure, share in shares.items():
                totals[measure] += weight * share
                yield common | {"measure": measure, "value": share}
        for measure, share in totals.items():
            yield {"measure": measure, "value": share, "k": index + 1, "layer": "all", "subspace": "column"}


def subspaces_of(subject: Subject, gradient: Tensor) -> dict[str, dict[Kind, LowRankSubspace]]:
    """By factors and kind: the adapters' subspaces, and the column space of the gradient's top singular vectors."""
    layout = subject.risk().layout
    found: dict[str, dict[Kind, LowRankSubspace]] = {}
    for adapter in (AUXILIARY, PRIMARY):
        if adapter == PRIMARY or adapter in subject.minimum.factors:
            factors = low_rank_factors(subject, adapter)
            columns = {name: orthonormal_basis(b) for name, (_, b) in factors.items()}
            rows = {name: orthonormal_basis(a.T) for name, (a, _) in factors.items()}
            found[adapter] = {kind: LowRankSubspace(layout, columns, rows, kind) for kind in KINDS}
    columns, rows = top_singular_bases(layout, gradient, subject.study.adapters.r)
    found[GRADIENT] = {"column": LowRankSubspace(layout, columns, rows, "column")}
    return found


def _absolute_eigenvalues(subject: Subject) -> Mapping[int, float]:
    records = read_records(subject.folder.measurement(subject.study, subject.cell, "curvature"))
    chosen = records[(records["measure"] == "hessian_eigenvalue") & (records["algorithm"] == "lanczos")]
    return {int(k): abs(float(value)) for k, value in zip(chosen["k"], chosen["value"], strict=True)}
