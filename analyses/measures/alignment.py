"""How much of the dominant curvature the adapters' subspaces hold, against chance and against the best they could."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from analyses.judging.permutation import permutation_test
from analyses.measures.base import Measure
from analyses.measures.curvature import CURVATURE, eigenpairs
from analyses.measures.minima import Progress, Rows, Subject, adapters_with_space, low_rank_factors
from analyses.measures.worst_cases import worst_case_at, worst_case_settings
from analyses.training.recording import load_recorded_snapshots
from bilora.adapters import AUXILIARY, PRIMARY
from bilora.measured import factor_subspace
from landscape import (
    AlignmentResult,
    GGNOperator,
    HessianOperator,
    Layout,
    LowRankSubspace,
    block_spectra,
    lanczos,
    restricted_curvature,
    top_singular_bases,
)
from landscape import (
    alignment as align,
)
from landscape.subspaces import KINDS, Kind

GRADIENT = "gradient"

Subspaces = dict[tuple[str, Kind], LowRankSubspace]
"""By factors (auxiliary, primary, gradient) and kind."""


def alignment(subject: Subject, progress: Progress) -> Rows:
    """Shares of the eigenvectors and of the worst case in the spaces of the adapters and of the gradient.

    ``captured_energy`` and its null and optimum are those of the column space of the auxiliary (of the primary for
    methods without one), by layer and over all. The ``alignment`` measures are over all layers, for every kind of
    subspace and for each of the factors (column ``component``); index 0 is the worst case at the claims' radius. The
    p-value and z-score of the first eigenvector come from random bases of the same ranks. Further: the pairing of
    layers (`layer_pairing`), and the largest eigenvalue inside the space.
    """
    values, vectors = eigenpairs(subject)
    eigenvalues = dict(enumerate(values.tolist(), 1))
    risk = subject.risk()
    subspaces = subspaces_of(subject, risk.layout, risk.gradient())
    headline = AUXILIARY if (AUXILIARY, "column") in subspaces else PRIMARY
    worst = {0: worst_case_at(subject, risk).epsilon}
    directions = worst | dict(enumerate(vectors, 1))
    yield from shares(subject, directions, eigenvalues, subspaces, headline)
    yield from layer_pairing(subspaces[headline, "column"], vectors, values.abs(), seed=subject.cell.seed)
    progress(1, 2)
    operator = HessianOperator(risk, graph_budget=subject.graph_budget)
    top = torch.tensor([max(eigenvalues.values(), key=abs)])
    for kind in ("column", "tangent"):
        inside = restricted_curvature(operator, subspaces[headline, kind], top, start=vectors[:1].T, tol=1e-2)
        common = {"component": headline, "subspace": kind, "index": 1}
        yield common | {"measure": "restricted_eigenvalue", "value": float(inside.eigenvalues[0])}
        yield common | {"measure": "restricted_eigenvalue_ratio", "value": float(inside.ratios[0])}
        yield common | {"measure": "restricted_residual", "value": float(inside.residuals[0])}
    progress(2, 2)


def shares(
    subject: Subject,
    directions: Mapping[int, Tensor],
    eigenvalues: Mapping[int, float],
    subspaces: Subspaces,
    headline: str,
) -> Rows:
    """Share of every direction in every subspace, and of the eigenvectors (k above 0) weighted by |eigenvalue|."""
    weighted: dict[tuple[str, Kind], float] = defaultdict(float)
    layout = next(iter(subspaces.values())).layout
    for k, direction in directions.items():
        if not direction.any():
            continue
        spectra = block_spectra(layout, direction)
        for (name, kind), subspace in subspaces.items():
            tested = k == 1 and name == headline
            samples = subject.plan.measures.alignment.null_samples if tested else 0
            found = align(direction, subspace, num_samples=samples, seed=subject.cell.seed, spectra=spectra)
            if k > 0:
                weighted[name, kind] += abs(eigenvalues[k]) * found.pooled.captured
            if k > 0 and (name, kind) == (headline, "column"):
                yield from captured_by_layer(found, k)
            share, common = found.pooled, {"component": name, "subspace": kind, "layer": "all", "index": k}
            yield common | {"measure": "alignment", "value": share.captured}
            yield common | {"measure": "alignment_expected", "value": share.expected}
            yield common | {"measure": "alignment_optimum", "value": share.optimum}
            if tested:
                yield common | {"measure": "alignment_z_score", "value": share.z_score}
                yield common | {"measure": "alignment_p_value", "value": share.p_value}
    total = sum(abs(value) for value in eigenvalues.values())
    for (name, kind), share_sum in weighted.items():
        common = {"component": name, "subspace": kind, "layer": "all"}
        yield common | {"measure": "alignment_weighted", "value": share_sum / total}


def captured_by_layer(found: AlignmentResult, k: int) -> Rows:
    """Share of the k-th eigenvector's blocks, by layer and pooled."""
    layers = {name.removesuffix(".weight"): share for name, share in found.layers.items()}
    for layer, share in (layers | {"all": found.pooled}).items():
        common = {"index": k, "layer": layer, "subspace": "column"}
        yield common | {"measure": "captured_energy", "value": share.captured}
        yield common | {"measure": "captured_energy_null", "value": share.expected}
        yield common | {"measure": "captured_energy_optimum", "value": share.optimum}


def layer_pairing(subspace: LowRankSubspace, vectors: Tensor, weights: Tensor, *, seed: int) -> Rows:
    """Whether a layer's column space fits its own blocks of the eigenvectors better than other layers' blocks.

    A random basis is a null that any space with a taste for large activations beats. Here the spaces are exchanged
    among the layers of one output width instead; the largest such group is tested.

    Args:
        subspace: Column spaces by layer.
        vectors: Eigenvectors (k, n).
        weights: (k,), their |eigenvalues|.
        seed: Seed of the permutations.
    """
    groups: dict[int, list[str]] = defaultdict(list)
    for name, (out, _) in zip(subspace.layout.names, subspace.layout.shapes, strict=True):
        groups[out].append(name)
    out, names = max(groups.items(), key=lambda item: len(item[1]))
    if len(names) < 2:
        return
    blocks = [subspace.layout.split(vector.double()) for vector in vectors]
    scores = torch.zeros(len(names), len(names), dtype=torch.float64)
    for j, owner in enumerate(names):
        basis = subspace.columns[owner].double()
        for i, name in enumerate(names):
            for weight, block in zip(weights, blocks, strict=True):
                scores[i, j] += weight * (basis.T @ block[name]).square().sum()
    total = sum(
        weight * block[name].square().sum() for weight, block in zip(weights, blocks, strict=True) for name in names
    )
    if not float(total) > 0:
        return
    # The mean of the diagonal is then the weighted share that the layers of the group capture.
    result = permutation_test(len(names) * scores / total, seed=seed)
    common = {"layer": f"{len(names)} layers of {out} outputs", "subspace": "column"}
    yield common | {"measure": "pairing", "value": result.statistic}
    yield common | {"measure": "pairing_expected", "value": result.expected}
    yield common | {"measure": "pairing_p_value", "value": result.p_value}


def along_training(subject: Subject, progress: Progress) -> Rows:
    """Weighted share of the minimum's eigenvectors in the column space of each adapter's B at every snapshot."""
    values, vectors = eigenpairs(subject)
    weights, layout = values.abs(), subject.risk().layout
    for step, tensors in load_recorded_snapshots(subject.run.recording).items():
        for adapter in dict.fromkeys(key.split("/")[0] for key in tensors):
            factors = {}
            for name in layout.names:
                layer = name.removesuffix(".weight")
                factors[name] = tensors[f"{adapter}/{layer}/A"], tensors[f"{adapter}/{layer}/B"]
            space = factor_subspace(layout, factors, "column")
            inside = torch.stack([space.project(vector).double().square().sum() for vector in vectors])
            share = float((weights * inside).sum() / weights.sum())
            common = {"component": adapter, "subspace": "column", "step": step}
            yield common | {"measure": "alignment_along_training", "value": share}
    progress(1, 1)


def gauss_newton(subject: Subject, progress: Progress) -> Rows:
    """Eigenvalues of the generalised Gauss-Newton matrix, and the share of its eigenvectors in the column spaces."""
    settings, risk = subject.plan.measures.curvature, subject.risk()
    subspaces = subspaces_of(subject, risk.layout, risk.gradient())
    operator = GGNOperator(risk, graph_budget=subject.graph_budget)
    found = lanczos(operator, settings.k, which="LM", tol=settings.lanczos_tol, seed=subject.cell.seed)
    weights = found.eigenvalues.double().abs()
    for k, (value, residual) in enumerate(zip(found.eigenvalues, found.residuals, strict=True), 1):
        yield {"measure": "gauss_newton_eigenvalue", "index": k, "value": float(value)}
        yield {"measure": "gauss_newton_residual", "index": k, "value": float(residual)}
    for (name, kind), space in subspaces.items():
        if kind == "column":
            inside = torch.stack([space.project(vector).double().square().sum() for vector in found.eigenvectors.T])
            common = {"component": name, "subspace": kind, "layer": "all"}
            share = float((weights * inside).sum() / weights.sum())
            yield common | {"measure": "gauss_newton_weighted", "value": share}
    progress(1, 1)


def subspaces_of(subject: Subject, layout: Layout, gradient: Tensor) -> Subspaces:
    """By factors and kind: the adapters' subspaces, and those of as many of the gradient's top singular vectors."""
    factors = {adapter: low_rank_factors(subject, adapter) for adapter in adapters_with_space(subject)}
    rank = min(next(iter(factors[AUXILIARY if AUXILIARY in factors else PRIMARY].values()))[1].shape)
    columns, rows = top_singular_bases(layout, gradient, rank)
    spaces = {(name, kind): factor_subspace(layout, own, kind) for name, own in factors.items() for kind in KINDS}
    return spaces | {(GRADIENT, kind): LowRankSubspace(layout, columns, rows, kind) for kind in KINDS}


ALIGNMENT = Measure(
    "alignment",
    alignment,
    lambda plan: [plan.measures.alignment.null_samples, worst_case_settings(plan)],
    needs=(CURVATURE,),
)
GAUSS_NEWTON = Measure(
    "gauss_newton",
    gauss_newton,
    lambda plan: plan.measures.curvature.model_dump(include={"k", "lanczos_tol"}),
    applies=lambda study, cell: study.measures.alignment.gauss_newton,
)
ALONG_TRAINING = Measure("alignment_along_training", along_training, needs=(CURVATURE,), recorded=True)
