"""The sets in which the worst case is sought: balls of several norms, adaptive ones, and their parts in a subspace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from landscape.params import Layout
from landscape.risk import EmpiricalRisk
from landscape.subspaces import Subspace, project_each

Norm = Literal["l2", "layerwise", "linf"]
_BLOCK, _SMALL = 2**14, 1e-15
_PIECE = 2**22
"""Numbers that inner products take to float64 at a time."""

Adaptive = Literal["none", "elementwise", "filter"]


@dataclass(frozen=True)
class Ball:
    r"""Perturbations :math:`\epsilon = Tu` with ‖u‖ ≤ rho, T a positive diagonal matrix.

    Args:
        rho: Radius, at least 0.
        norm: ``l2``: over the whole vector. ``linf``: over its entries. ``layerwise``: each tensor in its own l2 ball,
            whose radius is its share of ``rho``; the squares of the shares sum to 1, so that the set lies inside the
            l2 ball.
        layout: Positions of the tensors.
        scale: Diagonal of T (n,); ``None`` for the identity.
        shares: Radius of each tensor's ball over ``rho``, for ``layerwise``.
        subspace: Directions allowed, for the plain l2 ball only.
    """

    rho: float
    norm: Norm
    layout: Layout
    scale: Tensor | None = None
    shares: tuple[float, ...] | None = None
    subspace: Subspace | None = None

    def project(self, epsilon: Tensor) -> Tensor:
        """The nearest points of the ball to perturbations (..., n), in the coordinates u and the ball's norm."""
        u = self._inside(epsilon if self.scale is None else _divide(epsilon, self.scale))
        return self._outside(self._clip(u))

    def stepped(self, epsilon: Tensor, gradient: Tensor, step: Tensor | float) -> Tensor:
        """Projections of the ball's points (..., n) after steps, in units of the radius, along the steepest directions.

        Where vectors are long, or many, every sweep over them counts: three here for the plain l2 ball.
        """
        if self.norm == "l2" and self.scale is None and self.subspace is None:
            norm = _norm(gradient)
            length = torch.where(norm > _SMALL, step * self.rho / norm, 0.0).to(epsilon.dtype)
            if bool(((length > 0) & length.isfinite()).all()):
                ahead = torch.addcmul(epsilon, gradient, length)
                size = _norm(ahead)
                return ahead.mul_(torch.where(size > self.rho, self.rho / size, 1.0).to(ahead.dtype))
        length = torch.as_tensor(step * self.rho).to(epsilon)  # a product of two precisions is many times slower
        ahead = self.ascent_direction(gradient).mul_(length).add_(epsilon)
        return self.project(ahead) if self.subspace is None else self._clip(ahead)  # both are in the subspace

    def extreme(self, gradient: Tensor) -> Tensor:
        """The point of the ball where the linear function with this gradient is largest; 0 for a zero gradient."""
        return self.rho * self.ascent_direction(gradient)

    def ascent_direction(self, gradient: Tensor) -> Tensor:
        """The points of the unit ball where linear functions with gradients (..., n) are largest."""
        slope = self._inside(gradient if self.scale is None else gradient * self.scale)
        if self.norm == "linf":
            return self._outside(slope.sign())
        if self.norm == "l2":
            return self._outside(_unit(slope))
        return self._outside(torch.cat([share * _unit(part) for part, share in self._by_tensor(slope)], dim=-1))

    def cosine(self, one: Tensor, other: Tensor) -> float:
        """Of the angle between two perturbations (n,) in the coordinates u; 0 where one of them is."""
        if self.scale is not None:
            one, other = _divide(one, self.scale), _divide(other, self.scale)
        size = math.sqrt(inner(one, one) * inner(other, other))
        return inner(one, other) / size if size > 0 else 0.0

    def perturbation(self, u: Tensor) -> Tensor:
        """Tu for coordinates (..., n). Noise has to be drawn there to be the same whatever the weights' scale."""
        return self._outside(u)

    def onto_boundary(self, direction: Tensor) -> Tensor:
        """The multiples of directions (..., n) that lie on the boundary; 0 for a zero direction."""
        u = self._inside(direction if self.scale is None else _divide(direction, self.scale))
        size = self._size(u)
        u = (u * torch.where(size > 0, self.rho / size, 0.0)).to(u.dtype)
        return self._outside(self._clip(u) if self.norm == "layerwise" else u)  # a tensor that is 0 has no ball

    def _clip(self, u: Tensor) -> Tensor:
        if self.norm == "linf":
            return u.clamp(-self.rho, self.rho)
        if self.norm == "l2":
            return _shorten(u, self.rho)
        return torch.cat([_shorten(part, share * self.rho) for part, share in self._by_tensor(u)], dim=-1)

    def _size(self, u: Tensor) -> Tensor:
        """Radius (..., 1) float64 of the smallest ball of this shape around 0 that holds u."""
        if self.norm == "linf":
            return u.abs().amax(dim=-1, keepdim=True).double()
        if self.norm == "l2":
            return _norm(u)
        sizes = [_norm(part) / share if share > 0 else 0 * _norm(part) for part, share in self._by_tensor(u)]
        return torch.stack(sizes).amax(dim=0)

    def _by_tensor(self, u: Tensor) -> Iterator[tuple[Tensor, float]]:
        """The part of each tensor, and its share of the radius."""
        assert self.shares is not None
        return zip(u.split(list(self.layout.sizes), dim=-1), self.shares, strict=True)

    def _inside(self, vector: Tensor) -> Tensor:
        if self.subspace is None:
            return vector
        inside = project_each(self.subspace, vector)
        if inside.shape != vector.shape:
            raise ValueError(
                f"subspace: expected a projection of shape {tuple(vector.shape)}, as of what is projected, got "
                f"{tuple(inside.shape)}"
            )
        return inside.to(vector)

    def _outside(self, u: Tensor) -> Tensor:
        return u if self.scale is None else u * self.scale


def ball_around(
    risk: EmpiricalRisk, rho: float, *, norm: Norm, adaptive: Adaptive, relative: bool, subspace: Subspace | None
) -> Ball:
    r"""The ball of one shape around the risk's weights.

    Args:
        risk: The mean loss; its weights are the centre and the scale.
        rho: Radius.
        norm: See `Ball`; the share of a tensor in ``layerwise`` is :math:`\|\theta_l\|_2/\|\theta\|_2`, of
            :math:`T^{-1}\theta` in an adaptive ball.
        adaptive: ``elementwise``: T = |theta|; ``filter``: T is the l2 norm of the weight's own filter (output unit) in
            matrices and |theta| in vectors (Kwon et al. 2021, arXiv 2102.11600, section 3). Both make the ball, and
            the worst case in it, the same for networks that differ by a rescaling between layers.
        relative: Measure ``rho`` in units of the weights' own norm (l2, or the largest entry for ``linf``).
        subspace: Directions allowed; only for the plain l2 ball.

    Raises:
        ValueError: rho is negative or not finite, an option is unknown, or two options exclude each other.
    """
    if not (rho >= 0 and math.isfinite(rho)):
        raise ValueError(f"rho: expected a finite radius >= 0, got {rho}")
    if norm not in ("l2", "layerwise", "linf"):
        raise ValueError(f"norm: expected 'l2', 'layerwise' or 'linf', got {norm!r}")
    if adaptive not in ("none", "elementwise", "filter"):
        raise ValueError(f"adaptive: expected 'none', 'elementwise' or 'filter', got {adaptive!r}")
    if subspace is not None and (norm != "l2" or adaptive != "none"):
        raise ValueError("subspace: only the plain l2 ball can be cut by a subspace; use norm='l2', adaptive='none'")
    if relative and adaptive != "none":
        raise ValueError("relative: an adaptive radius is relative to the weights already; use relative=False")
    theta = risk.theta
    if relative:
        rho *= float(theta.abs().max() if norm == "linf" else theta.double().norm())
    size = 1.0 if adaptive != "none" else float(theta.abs().max() if norm == "linf" else theta.double().norm())
    least = torch.finfo(risk.dtype).eps * size
    if 0 < rho < least:
        raise ValueError(
            f"rho: {rho:.3g} is below what {risk.dtype} resolves of weights of this size ({least:.1g}): theta + "
            "epsilon would be rounding; use a larger radius, or EmpiricalRisk(dtype=torch.float64)"
        )
    scale = None if adaptive == "none" else weight_scale(theta, risk.layout, by_filter=adaptive == "filter")
    shares = None
    if norm == "layerwise":
        # Adaptive coordinates are relative to the weights: a tensor's size is that of its own coordinates.
        own = theta if scale is None else _divide(theta, scale)
        norms = torch.stack([part.double().norm() for part in own.split(list(risk.layout.sizes))])
        shares = tuple(float(share) for share in norms / norms.norm().clamp(min=torch.finfo(torch.float64).tiny))
    return Ball(rho, norm, risk.layout, scale, shares, subspace)


def weight_scale(theta: Tensor, layout: Layout, *, by_filter: bool) -> Tensor:
    """Size of each weight (n,): its own, or with ``by_filter`` the l2 norm of its filter where it belongs to one."""
    norms = layout.filter_norms(theta) if by_filter else {}
    own = layout.split(theta.abs())
    return layout.join({name: norms[name].to(theta.dtype) if name in norms else own[name] for name in layout.names})


def inner(one: Tensor, other: Tensor) -> float:
    """Inner product of two vectors (n,), summed in float64."""
    pieces = zip(one.split(_PIECE), other.split(_PIECE), strict=True)
    return math.fsum(float(piece.double() @ beside.double()) for piece, beside in pieces)


def _divide(vector: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0, vector / scale, 0.0)


def _norm(vector: Tensor) -> Tensor:
    """Norms (..., 1) float64; in blocks of the vectors' own precision, unless their squares could leave its range."""
    blocks = torch.stack([torch.linalg.vector_norm(block, dim=-1) for block in vector.split(_BLOCK, dim=-1)], dim=-1)
    norm = blocks.double().norm(dim=-1, keepdim=True)
    if bool(((norm > _SMALL) & (norm < 1 / _SMALL)).all()):
        return norm
    return vector.double().norm(dim=-1, keepdim=True)


def _unit(vector: Tensor) -> Tensor:
    norm = _norm(vector)
    if bool((norm > _SMALL).all()):
        return vector / norm.to(vector.dtype)
    return (vector.double() / torch.where(norm > 0, norm, 1.0)).to(vector.dtype)


def _shorten(vector: Tensor, radius: float) -> Tensor:
    norm = _norm(vector)
    return vector * torch.where(norm > radius, radius / norm, 1.0).to(vector.dtype)
