"""Angles between the adapters' column spaces and those that hold the most of the dominant curvature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from analyses.measures.base import Measure
from analyses.measures.curvature import CURVATURE, eigenpairs
from analyses.measures.minima import Progress, Rows, Subject, adapters_with_space, low_rank_factors
from landscape import (
    chordal_distance,
    grassmann_distance,
    orthonormal_basis,
    principal_angles,
    subspace_overlap,
)


def angles(subject: Subject, progress: Progress) -> Rows:
    """Principal angles (degrees), Grassmann and chordal distance and overlap, by adapter and layer.

    The other subspace is the layer's `dominant_columns` of the factor's rank. An adapter whose factor is zero has no
    space and no rows.
    """
    values, vectors = eigenpairs(subject)
    weights = values.abs()
    layout = subject.risk().layout
    blocks = [layout.split(vector.double()) for vector in vectors]
    adapters = adapters_with_space(subject)
    for index, adapter in enumerate(adapters):
        for name, (_, factor) in low_rank_factors(subject, adapter).items():
            space = orthonormal_basis(factor.double())
            best = dominant_columns([block[name] for block in blocks], weights, space.shape[1])
            common = {"component": adapter, "subspace": "column", "layer": name.removesuffix(".weight")}
            yield from (common | row for row in distances(space, best))
        progress(index + 1, len(adapters))


def dominant_columns(blocks: list[Tensor], weights: Tensor, rank: int) -> Tensor:
    r"""Column space of a rank that holds the largest share :math:`\sum_k w_k\|Q^\top V_k\|_F^2` of weighted blocks.

    Args:
        blocks: V_k, each (out, in).
        weights: w (k,), not negative.
        rank: Columns asked for.

    Returns:
        Q (out, at most rank), orthonormal: the top left singular vectors of the blocks :math:`\sqrt{w_k}V_k` side by
        side; fewer where these span less.

    >>> dominant_columns([torch.diag(torch.tensor([1.0, 3.0]))], torch.ones(1), 1).abs()
    tensor([[0.],
            [1.]])
    """
    side_by_side = torch.cat([weight.sqrt() * block for weight, block in zip(weights, blocks, strict=True)], dim=1)
    left, singular, _ = torch.linalg.svd(side_by_side, full_matrices=False)
    return left[:, : min(rank, int((singular > 1e-9 * singular[0]).sum()))]


def distances(space: Tensor, best: Tensor) -> Rows:
    """Rows of how far two column spaces lie apart; none where either is empty."""
    if not (space.shape[1] and best.shape[1]):
        return
    degrees = principal_angles(space, best) * (180 / math.pi)
    yield {"measure": "principal_angle_smallest", "value": float(degrees[0])}
    yield {"measure": "principal_angle_largest", "value": float(degrees[-1])}
    yield {"measure": "grassmann_distance", "value": grassmann_distance(space, best)}
    yield {"measure": "chordal_distance", "value": chordal_distance(space, best)}
    yield {"measure": "subspace_overlap", "value": subspace_overlap(space, best)}
    by_chance = max(space.shape[1], best.shape[1]) / space.shape[0]
    yield {"measure": "subspace_overlap_expected", "value": by_chance}


ANGLES = Measure("angles", angles, needs=(CURVATURE,))
