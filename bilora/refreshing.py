"""Subspace iteration on the gradient at the merged weights, from the gradients of an adapter's factors alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from bilora.adapters import Factors

_FLAT = 1e-6
"""Singular values below this share of the largest are rounding of float32 gradients."""


@torch.no_grad()
def refresh(
    factors: Iterable[Factors], learned: Literal["A", "B"], rho: float, *, spare: Sequence[Tensor] | None = None
) -> None:
    r"""Set an adapter to the gradient's projection on the space of one of its factors, and keep the space it finds.

    With :math:`G` the gradient at a layer's merged weight and A's rows orthonormal, ``B.grad`` is
    :math:`\nabla_BL=sGA^\top`. ``learned="B"`` then makes the adapter

    .. math:: sBA = c\,GA^\top A,\qquad c=\rho\Big/\Big(\sum_j\|G_jA_j^\top\|_F^2\Big)^{1/2},

    factored so that B's columns are orthonormal and span the columns of :math:`GA^\top`. ``learned="A"`` is the same
    for the transpose: with B's columns orthonormal, :math:`sBA=c\,BB^\top G` and A's rows become orthonormal. Two
    calls with one G, B first, are a step of subspace iteration on :math:`G^\top G` (Golub and Van Loan, section 8.2;
    as PowerSGD uses it, arXiv 1905.13727). Gradients are used up. Where they have less than full rank, or are zero or
    not finite, the missing directions come from the space that the factor had before.

    Args:
        factors: Of all layers; the one that is not learned has orthonormal columns (B) or rows (A).
        learned: The factor whose gradient is taken.
        rho: Norm of the perturbation over all layers, in the units of the weights.
        spare: The space that missing directions come from, as columns (out, r) or (in, r) by layer, where it is not
            the learned factor's present one.
    """
    pairs = list(factors)
    before = spare or [_columns(pair, learned).clone() for pair in pairs]
    groups: dict[tuple[torch.Size, torch.Size], list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        groups[pair.A.shape, pair.B.shape].append(index)
    found: list[tuple[list[int], Tensor, Tensor, Tensor]] = []
    for members in groups.values():
        scaling = torch.tensor([pairs[index].scaling for index in members], dtype=torch.float64)
        scaling = scaling.to(pairs[0].A.device).view(-1, 1, 1)
        slopes = torch.stack([_slope(pairs[index], learned) for index in members]).double() / scaling
        space, weights = _orthonormal(slopes.nan_to_num(0.0, 0.0, 0.0), [before[index] for index in members])
        found.append((members, space, weights, scaling))
    norm = torch.stack([weights.square().sum() for _, _, weights, _ in found]).sum().sqrt()
    scale = torch.where(norm > 0, rho / norm, 0.0)
    for members, space, weights, scaling in found:
        kept = torch.stack([_columns(pairs[index], "A" if learned == "B" else "B") for index in members]).double()
        other = (kept @ weights.mT) * (scale / scaling)
        for index, new, scaled in zip(members, space, other, strict=True):
            _columns(pairs[index], learned).copy_(new)
            _columns(pairs[index], "A" if learned == "B" else "B").copy_(scaled)
    for pair in pairs:
        pair.A.grad = pair.B.grad = None
    torch.clear_autocast_cache()  # the factors have moved under an autocast around both passes


@torch.no_grad()
def start(factors: Iterable[Factors]) -> None:
    """Turn a fresh adapter off (B = 0) with the rows of A orthonormal, spanning what they spanned."""
    for pair in factors:
        pair.A.copy_(torch.linalg.qr(pair.A.double().T).Q.T)
        pair.B.zero_()


def _columns(pair: Factors, name: Literal["A", "B"]) -> Tensor:
    """A factor as a tall matrix, (in, r) or (out, r): a view of the live one."""
    return pair.B.detach() if name == "B" else pair.A.detach().T


def _slope(pair: Factors, name: Literal["A", "B"]) -> Tensor:
    gradient = getattr(pair, name).grad
    if gradient is None:
        return torch.zeros_like(_columns(pair, name))
    tall: Tensor = gradient if name == "B" else gradient.T
    return tall


def _orthonormal(slopes: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Polar decomposition of tall matrices (layers, n, r): orthonormal columns and weights (layers, r, r).

    The orthonormal factor is the one nearest to the matrix, so that it has no arbitrary signs (Higham 1986).
    """
    values, vectors = torch.linalg.eigh(slopes.mT @ slopes)
    values = values.clamp_min(0).sqrt()
    found = values > _FLAT * values[:, -1:]
    inverse = torch.where(found, 1 / values.clamp_min(torch.finfo(values.dtype).tiny), 0.0)
    space = slopes @ (vectors * inverse.unsqueeze(1)) @ vectors.mT
    if not bool(found.all()):
        for index in torch.where(~found.all(dim=1))[0].tolist():
            missing = vectors[index][:, ~found[index]]
            space[index] += _beside(space[index], before[index].double(), missing.shape[1]) @ missing.T
    return space, (vectors * torch.where(found, values, 0.0).unsqueeze(1)) @ vectors.mT


def _beside(space: Tensor, before: Tensor, count: int) -> Tensor:
    """Orthonormal directions (n, count) beside a space, of an earlier one as far as it goes, else of the axes."""
    length, width = before.shape
    axes = torch.eye(length, min(length, 2 * width), dtype=before.dtype, device=before.device)
    size = before.norm()
    candidates = torch.cat([before / size if size > 0 else before, 1e-3 * axes], dim=1)
    candidates -= space @ (space.T @ candidates)
    return torch.linalg.svd(candidates, full_matrices=False).U[:, :count]
