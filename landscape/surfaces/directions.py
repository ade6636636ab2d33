"""Directions to look along: random ones at the scale of the weights, a trajectory's own plane, a subspace's parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from landscape.asking import expect_count, expect_finite, expect_floating, expect_risk, expect_vector, seeded
from landscape.params import Layout
from landscape.risk import EmpiricalRisk
from landscape.showing import Shown, kind_of
from landscape.subspaces import Subspace, space_of

Unit = Literal["filter", "layer"]

_COLUMNS_AT_ONCE = 2**20


def random_direction(
    risk: EmpiricalRisk, *, seed: int, normalize: Literal["filter", "layer", "none"] = "filter"
) -> Tensor:
    """Gaussian direction in weight space, by default scaled filter by filter to the weights.

    Args:
        risk: Its weights give the shapes and the scale.
        seed: Seed of the draw.
        normalize: ``filter`` or ``layer`` as in `filter_normalize`, which also leave biases and norms out;
            ``none`` keeps independent standard normal entries everywhere.

    Returns:
        (n,) in the dtype of the risk.

    Raises:
        ValueError: ``normalize`` is unknown, or there is no weight matrix to scale to.

    >>> risk = EmpiricalRisk(torch.nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))])
    >>> random_direction(risk, seed=0)[4:]  # the bias
    tensor([0., 0.])
    """
    expect_risk(risk)
    if normalize not in ("filter", "layer", "none"):
        raise ValueError(f"normalize: expected 'filter', 'layer' or 'none', got {normalize!r}")
    generator = seeded(seed)
    noise = torch.randn(risk.num_params, dtype=torch.float64, generator=generator).to(risk.device, risk.dtype)
    return noise if normalize == "none" else filter_normalize(noise, risk.theta, risk.layout, unit=normalize)


def filter_normalize(direction: Tensor, theta: Tensor, layout: Layout, *, unit: Unit = "filter") -> Tensor:
    r"""Scale each filter of a direction to the norm of the same filter of the weights.

    .. math:: d_{ij} \leftarrow \frac{d_{ij}}{\|d_{ij}\|}\,\|\theta_{ij}\|

    for filter j (what makes one output unit: a row of a matrix) of layer i, which takes the scale invariance
    of normalised networks out of the picture (Li et al. 2018, arXiv 1712.09913, section 4). Tensors with fewer than
    two dimensions (biases, norms) are set to zero, as in their code's default.

    Args:
        direction: (n,).
        theta: Weights (n,) that give the scale.
        layout: Where each tensor lies in the two vectors.
        unit: What counts as a filter: ``filter`` one slice, ``layer`` the whole tensor.

    Returns:
        (n,) in the dtype of ``direction``; zero where the weights or the direction are.

    Raises:
        ValueError: ``unit`` is unknown, a shape differs, or no tensor has two dimensions.

    >>> layout = Layout(("w",), (torch.Size([2, 2]),))
    >>> filter_normalize(torch.tensor([3.0, 4.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 6.0, 8.0]), layout)
    tensor([ 0.6000,  0.8000,  0.0000, 10.0000])
    """
    if unit not in ("filter", "layer"):
        raise ValueError(f"unit: expected 'filter' or 'layer', got {unit!r}")
    if not isinstance(layout, Layout):
        raise ValueError(f"layout: expected a Layout, got {kind_of(layout)}; pass risk.layout")
    for name, vector in (("direction", direction), ("theta", theta)):
        expect_vector(name, vector, layout.size)
        expect_floating(name, vector)
    if all(len(shape) < 2 for shape in layout.shapes):
        raise ValueError("layout: expected a tensor with at least two dimensions, got none; use normalize='none'")
    scaled = layout.split(torch.zeros_like(direction))
    given, weights = layout.split(direction), layout.split(theta)
    norms, wanted = layout.filter_norms(direction), layout.filter_norms(theta)
    for name in norms:
        old, new = norms[name], wanted[name]
        if unit == "layer":
            old, new = given[name].double().norm(), weights[name].double().norm()
        scaled[name] = (given[name] * torch.where(old > 0, new / old, 0)).to(direction.dtype)
    return layout.join(scaled)


@dataclass(frozen=True, repr=False)
class TrajectoryPlane(Shown):
    """Principal directions of a trajectory.

    Attributes:
        basis: (n, k), orthonormal columns, by falling variance.
        coordinates: (T, k) float64, of each point relative to the last one.
        explained_variance: (k,) float64, shares of the trajectory's variance, 1 in total for a k-dimensional one.
    """

    basis: Tensor
    coordinates: Tensor
    explained_variance: Tensor

    def _columns(self) -> dict[str, list[float]]:
        return {f"component {number}": column.tolist() for number, column in enumerate(self.coordinates.T, 1)}


def trajectory_plane(points: Tensor, *, k: int = 2) -> TrajectoryPlane:
    r"""Principal components of :math:`\theta_t-\theta_T` (Li et al. 2018, arXiv 1712.09913, section 7).

    The differences are centred, as principal components are, and never decomposed themselves: the eigenvectors of
    their T × T Gram matrix, accumulated in float64, give the components.

    Args:
        points: (T, n), the weights along training, the last row being the end.
        k: Number of components.

    Returns:
        Basis, coordinates and shares of variance.

    Raises:
        ValueError: ``points`` is not a finite matrix, or does not vary in k directions.

    >>> plane = trajectory_plane(torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [3.0, 1.0, 0.0]]))
    >>> round(float(plane.explained_variance.sum()), 6)
    1.0
    """
    expect_finite("points", points)
    if points.dim() != 2:
        raise ValueError(f"points: expected finite weights of shape (T, n), got shape {tuple(points.shape)}")
    expect_count("k", k)
    blocks = points.split(_COLUMNS_AT_ONCE, dim=1)
    gram = torch.zeros(len(points), len(points), dtype=torch.float64, device=points.device)
    for block in blocks:
        steps = (block - block[-1]).double()
        gram += steps @ steps.T
    centred = gram - gram.mean(dim=0)
    centred = centred - centred.mean(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh((centred + centred.T) / 2)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    # Components with less than 1e-5 of the first one's spread have too few digits in the Gram matrix.
    rank = int((values > 1e-10 * values[0]).sum())
    if rank < k:
        raise ValueError(f"points: expected variation in {k} directions, got {rank}; ask for a smaller k")
    vectors = vectors[:, :k] * vectors[:, :k].gather(0, vectors[:, :k].abs().argmax(dim=0, keepdim=True)).sign()
    weights = (vectors - vectors.mean(dim=0)) / values[:k].sqrt()
    return TrajectoryPlane(
        basis=torch.cat([((block - block[-1]).double().T @ weights).to(points.dtype) for block in blocks]),
        coordinates=gram @ weights,
        explained_variance=values[:k] / values.sum(),
    )


def split_direction(direction: Tensor, subspace: Subspace | Tensor) -> tuple[Tensor, Tensor]:
    """Parts of a direction inside a subspace and orthogonal to it, each scaled to unit norm.

    Two axes for a surface that sets a subspace (that of LoRA's factors, say) against the rest of weight space.

    Args:
        direction: (n,).
        subspace: Orthonormal basis (n, k), or an object with ``project``.

    Returns:
        Unit vectors (n,) inside and outside.

    Raises:
        ValueError: The direction is not finite, or lies in the subspace or in its complement, up to rounding.

    >>> inside, outside = split_direction(torch.tensor([3.0, 4.0]), torch.tensor([[1.0], [0.0]]))
    >>> inside, outside
    (tensor([1., 0.]), tensor([0., 1.]))
    """
    space = space_of(subspace)
    expect_finite("direction", direction)
    inside = space.project(direction)
    outside = direction - inside
    smallest = 100 * torch.finfo(direction.dtype).eps * direction.double().norm()
    for part, place in ((inside, "inside"), (outside, "outside")):
        if not part.double().norm() > smallest:
            raise ValueError(f"direction: expected a part {place} the subspace, got none; choose another direction")
    return _unit(inside), _unit(outside)


def _unit(vector: Tensor) -> Tensor:
    return (vector.double() / vector.double().norm()).to(vector.dtype)
