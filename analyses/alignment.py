"""How much of the dominant curvature the adapters' subspaces hold, against chance and against the best they could."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from analyses.minima import Progress, Rows, Subject, low_rank_factors, measured_vectors
from analyses.records import read_records
from bilora.adapters import AUXILIARY, PRIMARY
from landscape import (
    AlignmentResult,
    HessianOperator,
    Layout,
    LowRankSubspace,
    block_spectra,
    orthonormal_basis,
    restricted_curvature,
    top_singular_bases,
)
from landscape import (
    alignment as align,
)
from landscape.subspaces import KINDS, Kind

GRADIENT = "gradient"


def alignment(subject: Subject, progress: Progress) -> Rows:
    """Shares of the eigenvectors and of the worst case in the spaces of the adapters and of the gradient.

    ``captured_energy`` and its null and optimum are those of the column space of the auxiliary (of the primary for
    methods without one), by layer and over all. The ``alignment`` measures are over all layers, for every kind of
    subspace and for each of the factors (column ``other``); ``k`` 0 is the worst case at the claims' radius. The
    p-value and z-score of the first eigenvector come from random bases of the same ranks.
    """
    vectors = measured_vectors(subject, "curvature")["eigenvectors"]
    directions = {0: measured_vectors(subject, "sharpness")["full"], **dict(enumerate(vectors, 1))}
    eigenvalues = _eigenvalues(subject)
    risk = subject.risk()
    subspaces = subspaces_of(subject, risk.layout, risk.gradient())
    headline = AUXILIARY if (AUXILIARY, "column") in subspaces else PRIMARY
    weighted: dict[tuple[str, Kind], float] = defaultdict(float)
    for k, direction in directions.items():
        if not direction.any():
            continue
        spectra = block_spectra(risk.layout, direction)
        for (name, kind), subspace in subspaces.items():
            tested = k == 1 and name == headline
            samples = subject.study.measures.alignment.null_samples if tested else 0
            found = align(direction, subspace, num_samples=samples, seed=subject.cell.seed, spectra=spectra)
            if k > 0:
                weighted[name, kind] += abs(eigenvalues[k]) * found.pooled.captured
            if k > 0 and (name, kind) == (headline, "column"):
                yield from captured_by_layer(found, k)
            share, common = found.pooled, {"other": name, "subspace": kind, "layer": "all", "k": k}
            yield common | {"measure": "alignment", "value": share.captured}
            yield common | {"measure": "alignment_expected", "value": share.expected}
            yield common | {"measure": "alignment_optimum", "value": share.optimum}
            if tested:
                yield common | {"measure": "alignment_z_score", "value": share.z_score}
                yield common | {"measure": "alignment_p_value", "value": share.p_value}
    total = sum(abs(value) for value in eigenvalues.values())
    for (name, kind), share_sum in weighted.items():
        common = {"other": name, "subspace": kind, "layer": "all"}
        yield common | {"measure": "alignment_weighted", "value": share_sum / total}
    progress(1, 2)
    operator = HessianOperator(risk, graph_budget=subject.graph_budget)
    top = torch.tensor([max(eigenvalues.values(), key=abs)])
    for kind in ("column", "tangent"):
        inside = restricted_curvature(operator, subspaces[headline, kind], top, start=vectors[:1].T, tol=1e-2)
        common = {"other": headline, "subspace": kind, "k": 1}
        yield common | {"measure": "restricted_eigenvalue", "value": float(inside.eigenvalues[0])}
        yield common | {"measure": "restricted_eigenvalue_ratio", "value": float(inside.ratios[0])}
        yield common | {"measure": "restricted_residual", "value": float(inside.residuals[0])}
    progress(2, 2)


def captured_by_layer(found: AlignmentResult, k: int) -> Rows:
    """Share of the k-th eigenvector's blocks, by layer and pooled."""
    layers = {name.removesuffix(".weight"): share for name, share in found.layers.items()}
    for layer, share in (layers | {"all": found.pooled}).items():
        common = {"k": k, "layer": layer, "subspace": "column"}
        yield common | {"measure": "captured_energy", "value": share.captured}
        yield common | {"measure": "captured_energy_null", "value": share.expected}
        yield common | {"measure": "captured_energy_optimum", "value": share.optimum}


def subspaces_of(subject: Subject, layout: Layout, gradient: Tensor) -> dict[tuple[str, Kind], LowRankSubspace]:
    """By factors and kind: the adapters' subspaces, and those of the gradient's top r singular vectors."""
    bases = {}
    for adapter in (AUXILIARY, PRIMARY):
        if adapter == PRIMARY or adapter in subject.minimum.factors:
            factors = low_rank_factors(subject, adapter)
            columns = {name: orthonormal_basis(b) for name, (_, b) in factors.items()}
            rows = {name: orthonormal_basis(a.T) for name, (a, _) in factors.items()}
            bases[adapter] = columns, rows
    bases[GRADIENT] = top_singular_bases(layout, gradient, subject.study.adapters.r)
    return {(name, kind): LowRankSubspace(layout, *both, kind) for name, both in bases.items() for kind in KINDS}


def _eigenvalues(subject: Subject) -> dict[int, float]:
    records = read_records(subject.folder.measurement(subject.study, subject.cell, "curvature"))
    chosen = records[(records["measure"] == "hessian_eigenvalue") & (records["algorithm"] == "lanczos")]
    return {int(k): float(value) for k, value in zip(chosen["k"], chosen["value"], strict=True)}
