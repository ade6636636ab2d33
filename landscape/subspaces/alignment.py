"""How much of a direction in weight space lies in the subspace of low-rank factors, against chance and the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape.asking import expect_count, expect_finite, expect_vector, seeded
from landscape.params import Layout
from landscape.showing import Shown, axes_or_new, kind_of
from landscape.subspaces import Kind, LowRankSubspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROUNDING = 1e-12
"""Shares that differ by less are the same."""


@dataclass(frozen=True, repr=False)
class Share(Shown):
    """Share of a squared norm that a subspace holds, and what it is to be compared with.

    Attributes:
        captured: The share, between 0 and 1; NaN for a zero block.
        expected: Its exact mean under random orthonormal bases of the same ranks.
        optimum: The most that bases of these ranks can hold.
        deviation: Standard deviation of the sampled null; NaN without samples.
        z_score: Distance from ``expected`` in units of ``deviation``; NaN without samples, and where every subspace of
            these ranks holds the same.
        p_value: One-sided, (1 + number of null samples at or above ``captured``) / (1 + number of samples); NaN
            without samples.
    """

    captured: float
    expected: float
    optimum: float
    deviation: float = math.nan
    z_score: float = math.nan
    p_value: float = math.nan

    @property
    def of_optimum(self) -> float:
        """``captured`` as a share of ``optimum``; NaN where nothing can be captured."""
        return self.captured / self.optimum if self.optimum > 0 else math.nan


@dataclass(frozen=True, repr=False)
class AlignmentResult(Shown):
    """Shares by layer and over all of them.

    Attributes:
        layers: By name of the weight.
        pooled: Of the whole direction: the layers weighted by their part of its squared norm.
        num_samples: Random subspaces drawn for the null.
    """

    layers: Mapping[str, Share]
    pooled: Share
    num_samples: int

    def plot(self, ax: Axes | None = None) -> Axes:
        """Captured shares by layer, beside those expected by chance and the most that these ranks can hold."""
        ax = axes_or_new(ax)
        columns = self._columns()
        places = range(len(self.layers))
        for name, mark in {"captured": "o", "expected": "_", "optimum": "x"}.items():
            ax.plot(places, columns[name][:-1], ls="none", marker=mark, label=name)
        ax.set_xticks(places, list(self.layers), rotation=90)
        ax.set_ylabel("share of the block")
        ax.legend()
        return ax

    def _columns(self) -> dict[str, list[Any]]:
        shares = {**self.layers, "all layers": self.pooled}
        numbers = {
            name: [getattr(share, name) for share in shares.values()]
            for name in ("captured", "expected", "optimum", "z_score", "p_value")
        }
        return {"layer": list(shares), **numbers}


def alignment(
    direction: Tensor,
    subspace: LowRankSubspace,
    *,
    num_samples: int = 200,
    seed: int = 0,
    spectra: Mapping[str, Tensor] | None = None,
) -> AlignmentResult:
    r"""Share of a direction's squared norm in a low-rank subspace, layer by layer and pooled.

    For a block V (out, in) with singular values :math:`\sigma_i` and bases of ranks c (columns) and r (rows):

    ======== ============================================ ===========================================
    kind     expected under random bases                  optimum, as a share of :math:`\sum\sigma_i^2`
    ======== ============================================ ===========================================
    column   c/out                                        :math:`\sum_{i\le c}\sigma_i^2`
    row      r/in                                         :math:`\sum_{i\le r}\sigma_i^2`
    core     c·r/(out·in)                                 :math:`\sum_{i\le\min(c,r)}\sigma_i^2`
    tangent  1 − (1 − c/out)(1 − r/in)                    :math:`\sum_{i\le c+r}\sigma_i^2`
    ======== ============================================ ===========================================

    The tangent projection PV + (I − P)VR has rank at most c + r, so it holds no more than the best approximation of
    that rank (Eckart and Young 1936), which P on the first c left and R on the next r right singular vectors reaches.

    The null draws orthonormal bases from the Haar measure. Rotating a block into its singular vectors leaves that
    measure as it is, so only the singular values enter. Factors of rank 0, such as B = 0 at the start of training,
    open no subspace and capture nothing.

    Args:
        direction: (n,), an eigenvector or a perturbation.
        subspace: Bases by layer, and the kind.
        num_samples: Size of the null; 0 leaves z-scores and p-values undefined.
        seed: Seed of the null.
        spectra: ``block_spectra`` of the direction, to share them among several subspaces. Default: computed here.

    Raises:
        ValueError: ``direction`` has another length than the layout, is zero or not finite, or ``num_samples`` is 1 or
            negative.

    >>> layout = Layout(("w",), (torch.Size((2, 2)),))
    >>> columns, rows = {"w": torch.tensor([[1.0], [0.0]])}, {"w": torch.tensor([[1.0], [0.0]])}
    >>> alignment(torch.tensor([3.0, 0.0, 0.0, 4.0]), LowRankSubspace(layout, columns, rows, "column")).pooled.captured
    0.36
    """
    if not isinstance(subspace, LowRankSubspace):
        raise ValueError(f"subspace: expected a LowRankSubspace, got {kind_of(subspace)}; pass bases by layer")
    layout = subspace.layout
    expect_vector("direction", direction, layout.size)
    if not bool(torch.isfinite(direction).all()) or not bool(direction.any()):
        raise ValueError("direction: expected a finite direction that is not zero")
    expect_count("num_samples", num_samples, least=0)
    if num_samples == 1:
        raise ValueError(f"num_samples: expected 0 or at least 2, got {num_samples}")
    spectra = block_spectra(layout, direction) if spectra is None else spectra
    inside = layout.split(_in_float64(subspace).project(direction.double()))
    total = float(direction.double().square().sum())
    generator = seeded(seed)
    layers: dict[str, Share] = {}
    pooled = dict.fromkeys(("captured", "expected", "optimum"), 0.0)
    null = torch.zeros(num_samples, dtype=torch.float64)
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        ranks = subspace.columns[name].shape[1], subspace.rows[name].shape[1]
        squares = spectra[name].square()
        energy = float(squares.sum())
        draws = _null(squares, shape, ranks, subspace.kind, num_samples, generator)
        null += draws / total
        if energy == 0:
            layers[name] = Share(math.nan, _expected(shape, ranks, subspace.kind), math.nan)
            continue
        share = _against_null(
            float(inside[name].square().sum()) / energy,
            _expected(shape, ranks, subspace.kind),
            float(squares[: _attainable_rank(ranks, subspace.kind)].sum()) / energy,
            draws / energy,
        )
        layers[name] = share
        for key in pooled:
            pooled[key] += energy / total * getattr(share, key)
    return AlignmentResult(layers, _against_null(**pooled, draws=null), num_samples)


def weighted_capture(eigenvalues: Tensor, eigenvectors: Tensor, subspace: LowRankSubspace) -> float:
    r"""Share of the dominant curvature in a subspace, :math:`\sum_i|\lambda_i|s_i/\sum_i|\lambda_i|`.

    Args:
        eigenvalues: (k,); their absolute values weigh, so that negative curvature counts.
        eigenvectors: (n, k).
        subspace: Where the shares :math:`s_i` of the eigenvectors are taken.

    Raises:
        ValueError: The shapes do not fit, or all eigenvalues are zero.
    """
    expect_finite("eigenvalues", eigenvalues)
    expect_finite("eigenvectors", eigenvectors)
    if eigenvectors.dim() != 2 or eigenvalues.shape != eigenvectors.shape[1:]:
        raise ValueError(f"eigenvectors: expected shape (n, {len(eigenvalues)}), got {tuple(eigenvectors.shape)}")
    weights = eigenvalues.double().abs().cpu()
    if not float(weights.sum()) > 0:
        raise ValueError("eigenvalues: expected at least one that is not zero")
    shares = [alignment(vector, subspace, num_samples=0).pooled.captured for vector in eigenvectors.T]
    return float((weights * torch.tensor(shares, dtype=torch.float64)).sum() / weights.sum())


def block_spectra(layout: Layout, vector: Tensor) -> dict[str, Tensor]:
    """Singular values of every block of a vector (n,): by name (min(out, in),) float64, descending."""
    return {name: torch.linalg.svdvals(block.double()) for name, block in _blocks(layout, vector).items()}


def top_singular_bases(layout: Layout, vector: Tensor, r: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Left and right singular vectors of the r largest singular values of every block of a vector (n,).

    Returns:
        By name, (out, r) and (in, r): the bases that hold most of the vector at this rank. A block of lower rank has
        fewer columns: singular vectors of the value zero are arbitrary.

    Raises:
        ValueError: r is not positive.

    >>> columns, rows = top_singular_bases(Layout(("w",), (torch.Size((2, 2)),)), torch.tensor([0.0, 3.0, 0.0, 0.0]), 2)
    >>> columns["w"].abs().T, rows["w"].abs().T
    (tensor([[1., 0.]]), tensor([[0., 1.]]))
    """
    expect_count("r", r)
    columns, rows = {}, {}
    for name, block in _blocks(layout, vector).items():
        left, singular, right = torch.linalg.svd(block.double(), full_matrices=False)
        rounding = torch.finfo(vector.dtype).eps * max(block.shape) * float(singular.max())
        rank = min(r, int((singular > rounding).sum()))
        columns[name], rows[name] = left[:, :rank].to(vector), right[:rank].T.contiguous().to(vector)
    return columns, rows


def _blocks(layout: Layout, vector: Tensor) -> dict[str, Tensor]:
    """The blocks of a vector (n,), matrices all.

    Raises:
        ValueError: The vector is none of the layout's, or not finite, or a tensor is no matrix.
    """
    expect_vector("vector", vector, layout.size)
    expect_finite("vector", vector)
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if len(shape) != 2:
            raise ValueError(f"layout: expected matrices only, but {name!r} has shape {tuple(shape)}; leave it out")
    return layout.split(vector)


def _in_float64(subspace: LowRankSubspace) -> LowRankSubspace:
    """The subspace with bases that are orthonormal to float64's rounding, so that no share exceeds its optimum."""
    columns = {name: torch.linalg.qr(basis.double()).Q for name, basis in subspace.columns.items()}
    rows = {name: torch.linalg.qr(basis.double()).Q for name, basis in subspace.rows.items()}
    return replace(subspace, columns=columns, rows=rows)


def _expected(shape: tuple[int, ...], ranks: tuple[int, int], kind: Kind) -> float:
    c, r = ranks[0] / shape[0], ranks[1] / shape[1]
    return {"column": c, "row": r, "core": c * r, "tangent": 1 - (1 - c) * (1 - r)}[kind]


def _attainable_rank(ranks: tuple[int, int], kind: Kind) -> int:
    return {"column": ranks[0], "row": ranks[1], "core": min(ranks), "tangent": sum(ranks)}[kind]


def _null(
    squares: Tensor,
    shape: tuple[int, ...],
    ranks: tuple[int, int],
    kind: Kind,
    num_samples: int,
    generator: torch.Generator,
) -> Tensor:
    """Captured squared norms (num_samples,) of random subspaces."""
    if num_samples == 0:
        return torch.zeros(0, dtype=torch.float64)
    squares = squares.cpu()  # where the generator draws

    def basis(dimension: int, rank: int) -> Tensor:
        draws = torch.randn(num_samples, dimension, rank, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(draws).Q[:, : len(squares)]

    if kind == "column":
        return basis(shape[0], ranks[0]).square().sum(dim=2) @ squares
    if kind == "row":
        return basis(shape[1], ranks[1]).square().sum(dim=2) @ squares
    columns, rows = basis(shape[0], ranks[0]), basis(shape[1], ranks[1])
    core = (columns.mT @ (squares.sqrt()[:, None] * rows)).square().sum(dim=(1, 2))
    if kind == "core":
        return core
    return columns.square().sum(dim=2) @ squares + rows.square().sum(dim=2) @ squares - core


def _against_null(captured: float, expected: float, optimum: float, draws: Tensor) -> Share:
    if len(draws) < 2:
        return Share(captured, expected, optimum)
    spread = float(draws.std())
    return Share(
        captured,
        expected,
        optimum,
        spread,
        (captured - expected) / spread if spread > _ROUNDING else math.nan,
        (1 + int((draws >= captured - _ROUNDING).sum())) / (1 + len(draws)),
    )
