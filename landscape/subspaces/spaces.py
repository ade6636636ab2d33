"""Subspaces of weight space: how two of them lie to each other, and projection onto those of LoRA factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from landscape.params import Layout
from landscape.showing import kind_of

Kind = Literal["column", "row", "core", "tangent"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Subspace(Protocol):
    """A linear subspace of weight space that can project onto itself."""

    @property
    def dimension(self) -> int:
        """Dimension of the subspace."""
        ...

    def project(self, vector: Tensor) -> Tensor:
        """Orthogonal projection of a vector (n,)."""
        ...


def orthonormal_basis(matrix: Tensor, *, tol: float = 1e-6) -> Tensor:
    """Orthonormal basis of the column space of a matrix (m, c).

    Args:
        matrix: Columns that span the space; they may be dependent or zero.
        tol: Singular values below ``tol`` times the largest count as zero; at least the precision of the matrix's
            numbers counts. Give it where they were rounded more coarsely before.

    Returns:
        (m, rank) with orthonormal columns, in float32 at least; (m, 0) for a zero matrix.

    Raises:
        ValueError: The matrix is none of floating type, or not finite.

    >>> orthonormal_basis(torch.tensor([[2.0, 4.0], [0.0, 0.0]])).abs()
    tensor([[1.],
            [0.]])
    """
    if not isinstance(matrix, Tensor) or matrix.ndim != 2 or not matrix.is_floating_point():
        got = f"{matrix.dtype} of shape {tuple(matrix.shape)}" if isinstance(matrix, Tensor) else kind_of(matrix)
        raise ValueError(f"matrix: expected numbers of floating type, shape (m, c), got {got}")
    if not bool(matrix.isfinite().all()):
        raise ValueError("matrix: expected finite columns, got inf or nan: what spans a space has not diverged")
    tol = max(tol, torch.finfo(matrix.dtype).eps)
    precise = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    left, singular, _ = torch.linalg.svd(precise, full_matrices=False)
    if singular.numel() == 0 or singular[0] == 0:
        return left[:, :0]
    return left[:, singular > tol * singular[0]]


def principal_angles(basis_a: Tensor, basis_b: Tensor) -> Tensor:
    """Principal angles between two subspaces (Björck and Golub 1973, Math. Comp. 27).

    Small angles come from the sine, where the cosine has no digits left.

    Args:
        basis_a: (n, k_a), orthonormal columns.
        basis_b: (n, k_b), orthonormal columns.

    Returns:
        (min(k_a, k_b),) radians, ascending, between 0 and π/2.

    Raises:
        ValueError: A basis is not orthonormal, or the ambient dimensions differ.

    >>> eye = torch.eye(3, dtype=torch.float64)
    >>> principal_angles(eye[:, :1], eye[:, 1:2])
    tensor([1.5708], dtype=torch.float64)
    """
    basis_a, basis_b = _in_one_precision(basis_a, basis_b)
    if basis_a.shape[1] < basis_b.shape[1]:
        basis_a, basis_b = basis_b, basis_a
    overlap = basis_a.T @ basis_b
    cosines = torch.linalg.svdvals(overlap).clamp(0, 1)
    sines = torch.linalg.svdvals(basis_b - basis_a @ overlap).clamp(0, 1).flip(0)
    return torch.where(cosines**2 < 0.5, torch.arccos(cosines), torch.arcsin(sines))


def grassmann_distance(basis_a: Tensor, basis_b: Tensor) -> float:
    r"""Length of the shortest path between two subspaces, :math:`(\sum\theta_i^2)^{1/2}` of their principal angles.

    >>> eye = torch.eye(3, dtype=torch.float64)
    >>> round(grassmann_distance(eye[:, :2], eye[:, 1:]), 4)
    1.5708
    """
    return float(principal_angles(basis_a, basis_b).double().square().sum().sqrt())


def chordal_distance(basis_a: Tensor, basis_b: Tensor) -> float:
    r"""Chordal distance :math:`(\sum\sin^2\theta_i)^{1/2}`: the projectors' distance over √2 for equal dimensions.

    >>> eye = torch.eye(3, dtype=torch.float64)
    >>> round(chordal_distance(eye[:, :2], eye[:, 1:]), 4)
    1.0
    """
    return float(principal_angles(basis_a, basis_b).double().sin().square().sum().sqrt())


def subspace_overlap(basis_a: Tensor, basis_b: Tensor) -> float:
    r"""Overlap :math:`\|A^\top B\|_F^2/\min(k_a,k_b)`: 0 orthogonal, 1 contained (Gur-Ari et al. 2018, section 2).

    A space of dimension 0 overlaps with none: 0.
    """
    basis_a, basis_b = _in_one_precision(basis_a, basis_b)
    if 0 in (basis_a.shape[1], basis_b.shape[1]):
        return 0.0
    return float((basis_a.T @ basis_b).square().sum() / min(basis_a.shape[1], basis_b.shape[1]))


def captured_energy(block: Tensor, basis: Tensor) -> float:
    r"""Share of a matrix's squared norm in a column space, :math:`\|Q^\top V\|_F^2/\|V\|_F^2`.

    Args:
        block: V (out, in), one layer's part of a direction.
        basis: Q (out, r), orthonormal columns; r = 0 captures nothing.

    Returns:
        Share between 0 and 1; NaN for a zero block, which has no direction.

    Raises:
        ValueError: The basis is not orthonormal or of another height.

    >>> round(captured_energy(torch.tensor([[3.0], [4.0]]), torch.tensor([[0.0], [1.0]])), 6)
    0.64
    """
    if basis.shape[0] != block.shape[0]:
        raise ValueError(f"basis: expected {block.shape[0]} rows as block has, got {basis.shape[0]}")
    _check_bases(basis)
    total = block.double().square().sum()
    return float((basis.double().T @ block.double()).square().sum() / total)


def _in_one_precision(basis_a: Tensor, basis_b: Tensor) -> tuple[Tensor, Tensor]:
    _check_bases(basis_a, basis_b)
    dtype = torch.promote_types(torch.promote_types(basis_a.dtype, basis_b.dtype), torch.float32)
    return basis_a.to(dtype), basis_b.to(basis_a.device, dtype)


def _check_bases(*bases: Tensor) -> None:
    for basis in bases:
        if not isinstance(basis, Tensor) or not basis.is_floating_point():
            got = basis.dtype if isinstance(basis, Tensor) else kind_of(basis)
            raise ValueError(f"basis: expected a tensor of floating type with orthonormal columns (n, k), got {got}")
        if basis.ndim != 2:
            raise ValueError(
                f"basis: expected orthonormal columns, shape (n, k), got {tuple(basis.shape)}; use vector[:, None] for "
                "one"
            )
    if len({basis.shape[0] for basis in bases}) != 1:
        raise ValueError(f"bases: expected one ambient dimension, got shapes {[tuple(b.shape) for b in bases]}")
    for basis in bases:
        error = _orthonormality_error(basis.T @ basis)
        if not error <= 1e-3:  # nor NaN
            raise ValueError(f"bases: expected orthonormal columns, but Q'Q differs from I by {error:.2g}")


def _orthonormality_error(gram: Tensor) -> float:
    if gram.numel() == 0:
        return 0.0
    return float((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs().max())


def space_of(subspace: Subspace | Tensor) -> Subspace:
    """The subspace that is given, or the span of an orthonormal basis (n, k).

    Raises:
        ValueError: It is neither, or the basis is not orthonormal.
    """
    if isinstance(subspace, Tensor):
        return BasisSubspace(subspace)
    if not callable(getattr(subspace, "project", None)):
        raise ValueError(
            f"subspace: expected an orthonormal basis (n, k) or an object with project, got {kind_of(subspace)}"
        )
    return subspace


def project_each(subspace: Subspace, vectors: Tensor) -> Tensor:
    """The projections of vectors (..., n); a space of one's own is asked for one vector at a time."""
    if vectors.ndim == 1 or isinstance(subspace, BasisSubspace | LowRankSubspace):
        return subspace.project(vectors)
    return torch.stack([project_each(subspace, vector) for vector in vectors])


@dataclass(frozen=True)
class BasisSubspace:
    """Span of the orthonormal columns of ``basis`` (n, k)."""

    basis: Tensor

    def __post_init__(self) -> None:
        _check_bases(self.basis)

    @property
    def dimension(self) -> int:
        return self.basis.shape[1]

    def project(self, vector: Tensor) -> Tensor:
        """The nearest vectors of the space to vectors (..., n)."""
        if vector.shape[-1:] != self.basis.shape[:1]:
            raise ValueError(f"vector: expected shape (..., {len(self.basis)}), got {tuple(vector.shape)}")
        wide = torch.promote_types(vector.dtype, self.basis.dtype)
        basis = self.basis.to(vector.device, wide)
        return ((vector.to(wide) @ basis) @ basis.T).to(vector.dtype)


@dataclass(frozen=True)
class LowRankSubspace:
    r"""Product over layers of the subspace that low-rank factors open in each weight matrix.

    With projectors P onto ``columns`` (the column space of B) and R onto ``rows`` (the row space of A), a block V is
    projected to PV (``column``), VR (``row``), PVR (``core``) or PV + VR − PVR (``tangent``: all first-order changes
    of BA).

    Args:
        layout: Layout of the weight vector; every tensor in it is a matrix (out, in).
        columns: Per name, orthonormal (out, r).
        rows: Per name, orthonormal (in, r).
        kind: Which of the four.

    Factors of rank 0, such as B = 0 at the start of training, give bases without columns: P or R is then zero.

    Raises:
        ValueError: The kind is unknown, a tensor is no matrix, or a basis is missing, of another height or not
            orthonormal.
    """

    layout: Layout
    columns: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]
    kind: Kind = "tangent"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        for name, shape in zip(self.layout.names, self.layout.shapes, strict=True):
            if len(shape) != 2:
                raise ValueError(f"layout: expected matrices only, but {name!r} has shape {tuple(shape)}; leave it out")
            for side, bases, height in (("columns", self.columns, shape[0]), ("rows", self.rows, shape[1])):
                if name not in bases:
                    raise ValueError(f"{side}: expected a basis for {name!r}, got none")
                if bases[name].ndim != 2 or bases[name].shape[0] != height:
                    raise ValueError(
                        f"{side}: expected shape ({height}, r) for {name!r}, got {tuple(bases[name].shape)}"
                    )
                _check_bases(bases[name])

    @property
    def dimension(self) -> int:
        total = 0
        for name, (out, into) in zip(self.layout.names, self.layout.shapes, strict=True):
            c, r = self.columns[name].shape[1], self.rows[name].shape[1]
            total += {"column": c * into, "row": r * out, "core": c * r, "tangent": c * into + r * out - c * r}[
                self.kind
            ]
        return total

    def project(self, vector: Tensor) -> Tensor:
        """The nearest vectors of the space to vectors (..., n)."""
        if vector.shape[-1:] != (self.layout.size,):
            raise ValueError(f"vector: expected shape (..., {self.layout.size}), got {tuple(vector.shape)}")
        projected, sizes = torch.empty_like(vector), list(self.layout.sizes)
        parts = zip(vector.split(sizes, dim=-1), projected.split(sizes, dim=-1), strict=True)
        for name, shape, (part, place) in zip(self.layout.names, self.layout.shapes, parts, strict=True):
            place.unflatten(-1, shape).copy_(self._project(name, part.unflatten(-1, shape)))
        return projected

    def _project(self, name: str, block: Tensor) -> Tensor:
        """The same for one layer's blocks (..., out, in)."""
        columns, rows = self.columns[name].to(block), self.rows[name].to(block)
        if self.kind == "row":
            return block @ rows @ rows.T
        in_columns = columns @ (columns.T @ block)
        if self.kind == "column":
            return in_columns
        if self.kind == "core":
            return in_columns @ rows @ rows.T
        return in_columns + (block - in_columns) @ rows @ rows.T
