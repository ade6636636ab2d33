"""What low-rank perturbations do to the loss at first order, from the gradients of the weight matrices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from landscape.asking import expect_count, expect_finite, expect_number
from landscape.params import Layout
from landscape.showing import Shown
from landscape.subspaces import LowRankSubspace, orthonormal_basis


class LowRankPair(Protocol):
    """Factors of one layer: they add ``scaling * B @ A`` to its weight, with A (r, in) and B (out, r)."""

    @property
    def A(self) -> Tensor: ...

    @property
    def B(self) -> Tensor: ...

    @property
    def scaling(self) -> float: ...


@dataclass(frozen=True, repr=False)
class FirstOrderOptimum(Shown):
    r"""Largest first-order loss rise of a perturbation with rank at most r in every layer, in units of the loss.

    Attributes:
        frobenius: On the ball :math:`\sum_j\|\epsilon_j\|_F^2\le\rho^2`,
            :math:`\rho\,(\sum_j\sum_{i\le r}\sigma_{ji}^2)^{1/2}`.
        ky_fan: With :math:`\|\epsilon_j\|_2\le\rho` (spectral norm) in every layer,
            :math:`\rho\sum_j\sum_{i\le r}\sigma_{ji}`: the sum of Ky Fan r-norms that Bi-LoRA's proposition 3 states.
    """

    frobenius: float
    ky_fan: float


@dataclass(frozen=True, repr=False)
class FactorPerturbation(Shown):
    r"""LoRA-SAM's perturbation of the weights, exactly and by the formula without its cross term.

    Attributes:
        exact: By layer, :math:`s(B+e_B)(A+e_A)-sBA`, (out, in) in float64.
        formula: By layer, :math:`c\,(BB^\top G+GA^\top A)` with :math:`c=\rho s^2/\|(g_A,g_B)\|`.
        relative_error: :math:`\|\text{exact}-\text{formula}\|/\|\text{exact}\|` over all layers; NaN for a perturbation
            of zero.
        tangent_share: Share of the exact perturbation's squared norm in the tangent space of (Col B, Row A), where
            the formula lies entirely; NaN for a perturbation of zero.
    """

    exact: Mapping[str, Tensor]
    formula: Mapping[str, Tensor]
    relative_error: float
    tangent_share: float


def first_order_optimum(gradients: Mapping[str, Tensor], r: int | Mapping[str, int], rho: float) -> FirstOrderOptimum:
    r"""Maximum of :math:`\sum_j\langle G_j,\epsilon_j\rangle` over perturbations of rank at most r in every layer.

    On the Frobenius ball the best :math:`\epsilon_j` is the rank-r truncation of :math:`G_j`, all layers scaled alike
    (Cauchy-Schwarz over the layers, Eckart and Young 1936 in each); on spectral balls it is :math:`\rho U_rV_r^\top`
    (von Neumann's trace inequality). The two agree for one layer and r = 1.

    Args:
        gradients: By layer, :math:`G_j` (out, in), with singular values :math:`\sigma_{ji}`.
        r: Rank, one for all layers or one by layer.
        rho: Radius, in the units of the weights.

    Raises:
        ValueError: There is no gradient or one is no matrix, r is below 1, or rho is negative.

    >>> first_order_optimum({"w": torch.diag(torch.tensor([4.0, 3.0, 1.0]))}, 2, 0.1)
    FirstOrderOptimum(frobenius=0.5, ky_fan=0.7)
    """
    ranks = r if isinstance(r, Mapping) else dict.fromkeys(gradients, r)
    if set(ranks) != set(gradients):
        raise ValueError(f"r: expected a rank for each of {', '.join(gradients)}, got {r}")
    for rank in ranks.values():
        expect_count("r", rank)
    expect_number("rho", rho)
    if not rho >= 0:
        raise ValueError(f"rho: expected at least 0, got {rho}")
    _check_matrices(gradients)
    values = torch.cat([torch.linalg.svdvals(g.double())[: ranks[name]] for name, g in gradients.items()])
    return FirstOrderOptimum(rho * float(values.norm()), rho * float(values.sum()))


@torch.no_grad()
def factor_perturbation(
    gradients: Mapping[str, Tensor], factors: Mapping[str, LowRankPair], rho: float
) -> FactorPerturbation:
    r"""What SAM on the factors alone does to the merged weights (Bi-LoRA, arXiv 2508.19564, proposition 1).

    With :math:`g_B=sGA^\top` and :math:`g_A=sB^\top G`, LoRA-SAM perturbs the factors by
    :math:`(e_A,e_B)=\rho\,(g_A,g_B)/\|(g_A,g_B)\|`, the norm over all layers. The cross term that the formula drops,
    :math:`s\,e_Be_A`, is of second order in rho. Where the gradient of the factors vanishes there is no perturbation.

    Args:
        gradients: By layer, :math:`G_j` (out, in), at the merged weights.
        factors: By layer, the factors and their scaling s.
        rho: Radius in the space of the factors.

    Raises:
        ValueError: Layers or shapes of the two do not fit, or rho is negative.
    """
    if not rho >= 0:
        raise ValueError(f"rho: expected at least 0, got {rho}")
    _check_matrices(gradients)
    if gradients.keys() != factors.keys():
        raise ValueError(f"factors: expected the gradients' layers {list(gradients)}, got {list(factors)}")
    for name, pair in factors.items():
        if (pair.B.shape[0], pair.A.shape[1]) != gradients[name].shape or pair.A.shape[0] != pair.B.shape[1]:
            raise ValueError(
                f"factors: expected A (r, {gradients[name].shape[1]}) and B ({gradients[name].shape[0]}, r) for "
                f"{name!r}, got {tuple(pair.A.shape)} and {tuple(pair.B.shape)}"
            )
    scaled = {name: factors[name].scaling * gradient.double() for name, gradient in gradients.items()}
    a = {name: factors[name].A.double() for name in gradients}
    b = {name: factors[name].B.double() for name in gradients}
    slopes = {name: (b[name].T @ g, g @ a[name].T) for name, g in scaled.items()}
    norm = _norm(part for both in slopes.values() for part in both)
    scale = rho / norm if norm > 0 else 0.0
    exact, formula = {}, {}
    for name, both in slopes.items():
        e_a, e_b = (scale * slope for slope in both)
        formula[name] = factors[name].scaling * (e_b @ a[name] + b[name] @ e_a)
        exact[name] = formula[name] + factors[name].scaling * e_b @ e_a
    layout = Layout(tuple(exact), tuple(block.shape for block in exact.values()))
    columns = {name: orthonormal_basis(of) for name, of in b.items()}
    rows = {name: orthonormal_basis(of.T) for name, of in a.items()}
    inside = LowRankSubspace(layout, columns, rows, "tangent").project(layout.join(exact))
    size = _norm(exact.values())
    if not size > 0:
        return FactorPerturbation(exact, formula, math.nan, math.nan)
    error = _norm(exact[name] - formula[name] for name in exact) / size
    return FactorPerturbation(exact, formula, error, (float(inside.norm()) / size) ** 2)


def _check_matrices(gradients: Mapping[str, Tensor]) -> None:
    if not gradients:
        raise ValueError("gradients: expected at least one layer, got none")
    for name, gradient in gradients.items():
        if gradient.ndim != 2:
            raise ValueError(f"gradients: expected matrices (out, in), but {name!r} has shape {tuple(gradient.shape)}")
        expect_finite(f"gradients of {name!r}", gradient)


def _norm(blocks: Iterable[Tensor]) -> float:
    return float(torch.stack([block.square().sum() for block in blocks]).sum().sqrt())
