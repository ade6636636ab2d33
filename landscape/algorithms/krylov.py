"""What the Krylov methods share: a basis that grows by products, and the probe of what lies outside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from landscape.algorithms.storage import Rows, Storage, chosen_storage
from landscape.asking import seeded
from landscape.operators.base import SymmetricOperator

Callback = Callable[[int, float], object]
"""Called with the number of products so far and the accuracy reached; a true answer ends the run."""

_MISS_PROBABILITY = 1e-3
_PIECE = 2**20
"""Entries whose squares are in memory at a time."""


class KrylovBasis:
    """Orthonormal vectors q, their products Hq and the projection QᵀHQ; grows by one product a vector.

    The projection is float64 on the CPU; products are computed in the operator's own precision. Memory: 16 · n bytes a
    vector in float64, 8 · n in float32, half of that without products.

    Args:
        operator: H (n, n).
        capacity: Most vectors.
        seed: Of the random vectors.
        keep_products: Whether products are kept; without them there are no Ritz vectors' products and no probe.
        storage: Where vectors and products lie; inner products are taken in float64 everywhere.

    Attributes:
        size: Vectors now.
        num_matvecs: Products so far.
        last: Product of the newest vector, where products are not kept.
        storage: Where vectors and products lie.
    """

    last: Tensor

    def __init__(
        self,
        operator: SymmetricOperator,
        capacity: int,
        seed: int | torch.Generator,
        *,
        keep_products: bool = True,
        storage: Storage = "auto",
    ) -> None:
        self.operator, self.capacity = operator, capacity
        self.generator = seed if isinstance(seed, torch.Generator) else seeded(seed)
        self.size, self.num_matvecs = 0, 0
        self.storage = chosen_storage(operator, capacity * (1 + keep_products), storage)
        self._vectors = Rows(capacity, operator, self.storage)
        self._products = Rows(capacity if keep_products else 0, operator, self.storage)
        self._projected = torch.zeros(capacity, capacity, dtype=torch.float64)

    def along(self, vector: Tensor) -> Tensor:
        """Qᵀv (size,) on the operator's device."""
        return self._vectors.inner(vector, self.size)

    def combined(self, coefficients: Tensor) -> Tensor:
        """Qy (n,) for coefficients y (size,)."""
        return self._vectors.combine(coefficients[:, None], self.size)[:, 0]

    def image(self, coefficients: Tensor, which: Sequence[int] | None = None) -> Tensor:
        """HQy (n,) for coefficients y (size,), or of the vectors named."""
        return self._products.combine(coefficients[:, None], self.size if which is None else which)[:, 0]

    def outside(self, vector: Tensor) -> Tensor:
        """What a vector has outside the basis; removed twice, which is enough (Parlett 1998)."""
        for _ in range(2):
            vector = vector - self.combined(self.along(vector)) if self.size else vector
        return vector

    @property
    def projected(self) -> Tensor:
        """QᵀHQ (size, size) float64 on the CPU, symmetric."""
        return self._projected[: self.size, : self.size]

    @property
    def is_complete(self) -> bool:
        """Whether it spans the whole space."""
        return self.size == self.operator.shape[0]

    def grow(self, direction: Tensor | None) -> None:
        """Add what is new in a direction (n,), or without one, or where nothing is new, a random vector.

        Raises:
            FloatingPointError: The product is not finite.
        """
        new = None if direction is None else self._new_in(direction)
        unit = self._random() if new is None else new
        index, self.size = self.size, self.size + 1
        self._vectors[index] = unit
        del direction, new, unit  # a product needs the memory
        unit = self._vectors[index].to(self.operator.device)
        image = product(self.operator, unit).to(self._vectors.dtype)
        self.num_matvecs += 1
        row = self.along(image)
        if len(self._products):
            self._products[index] = image
            row = (row + self._products.inner(unit, self.size)) / 2
        else:
            self.last = image
        self._projected[index, : self.size] = self._projected[: self.size, index] = row.cpu()

    def ritz(self, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors Qy and their products HQy, both (n, m) in the storage's precision, for coefficients y (size, m)."""
        return self._vectors.combine(rotation, self.size), self._products.combine(rotation, self.size)

    def compress(self, rotation: Tensor) -> None:
        """Keep the combinations given by the orthonormal columns of ``rotation`` (size, m) only."""
        self._vectors.rotate(rotation)
        self._products.rotate(rotation)
        projected = rotation.T @ self.projected @ rotation
        self.size = rotation.shape[1]
        self._projected[: self.size, : self.size] = (projected + projected.T) / 2

    def check_symmetric(self) -> None:
        """Refuse an operator for which QᵀHQ is far from its transpose.

        Raises:
            FloatingPointError: It is.
        """
        # A float32 Hessian-vector product is symmetric to a few hundred units of rounding; 1e-2 is far above that.
        unit = torch.eye(self.size, dtype=torch.float64)
        overlap = torch.stack([self.along(self.image(column)) for column in unit], dim=1)
        asymmetry = (overlap - overlap.T).abs().max()
        # Where the loss is flat, products are rounding, which is not symmetric.
        if asymmetry > 1e-2 * overlap.abs().max() and asymmetry > self.operator.rounding():
            raise FloatingPointError(
                f"operator: expected a symmetric operator, but Q'HQ differs from its transpose by {asymmetry:.3g}"
            )

    def _new_in(self, direction: Tensor) -> Tensor | None:
        """The unit vector of what is outside the basis; none where that is rounding."""
        before = norm_of(direction)
        scale = max(before, float(self.projected.abs().max()) if self.size else 0.0)
        limit = torch.finfo(self.operator.dtype).eps * scale
        while before > limit:
            direction = direction - self.combined(self.along(direction)) if self.size else direction
            after = norm_of(direction)
            if after > 0.7 * before:  # what a sweep hardly shortens is orthogonal (Parlett 1998, section 6.9)
                return direction / after
            before = after
        return None

    def _random(self) -> Tensor:
        drawn = torch.randn(self.operator.shape[0], dtype=torch.float64, generator=self.generator)
        new = self.outside(drawn.to(self.operator.device, self._vectors.dtype))
        return new / new.norm()


def norm_of(vector: Tensor) -> float:
    """Norm in float64: squares of float32 over- and underflow where the numbers do not."""
    return float(torch.stack([piece.double().norm() for piece in vector.split(_PIECE)]).norm())


class OutsideProbe:
    r"""Looks for eigenvalues of :math:`PHP`, P the projection onto what is outside the first vectors of a basis.

    A small residual does not rule out a larger eigenvalue whose eigenvector the basis happens to be orthogonal to, a
    copy of a repeated one above all. So a Krylov sequence of PHP starts at a random vector outside, within the same
    basis. It has seen enough when its extreme Ritz pair is resolved, or when the chance that a random start hides an
    eigenvalue beyond the bound is below 1e-3 (Kuczyński and Woźniakowski 1992, SIAM J. Matrix Anal. Appl. 13(4),
    theorem 4.2; with the smallest Ritz value for the smallest eigenvalue, hence an estimate).

    Args:
        basis: To be extended; keeps its products.
        tol: Relative residual at which an extreme Ritz pair counts as resolved.
    """

    def __init__(self, basis: KrylovBasis, tol: float) -> None:
        self._basis, self._tol = basis, tol
        self._rows: list[int] = []
        self._steps, self._restarted = 0, False

    def step(self, sign: int = 1) -> None:
        """Grow the basis by the residual of the extreme pair outside; at random at first and where that vanishes."""
        if self._basis.size == self._basis.capacity:
            self._restart(sign)
        self._basis.grow(self._direction(sign))
        self._rows.append(self._basis.size - 1)
        self._steps += not self._restarted

    def _direction(self, sign: int) -> Tensor | None:
        """The residual of the extreme pair outside; none before the first step and where it vanishes."""
        if not self._rows:
            return None
        residual = self._residual(self._pairs(sign)[1][:, -1])
        return residual if norm_of(residual) > self._rounding() else None

    def leading(self, sign: int = 1) -> float:
        """The largest Ritz value of PHP, or of -PHP; minus infinity before the first step."""
        return float(self._pairs(sign)[0][-1]) if self._rows else -math.inf

    def rules_out(self, bound: float, sign: int = 1) -> bool:
        """Whether no eigenvalue outside exceeds ``bound``; with ``sign`` -1, whether none of -H does."""
        basis = self._basis
        if basis.is_complete:
            return True
        if not self._rows:
            return False
        values, vectors = self._pairs(sign)
        return float(values[-1]) <= bound and self._settled(bound, float(values[-1]), vectors[:, -1], sign)

    def _settled(self, bound: float, leading: float, coefficients: Tensor, sign: int) -> bool:
        """Whether the largest Ritz value outside says all that there is to be said about larger eigenvalues."""
        leak = norm_of(self._residual(coefficients))
        if leak <= self._rounding():
            return True
        needed = math.log(1.648 * math.sqrt(self._basis.operator.shape[0]) / _MISS_PROBABILITY)
        # A random vector is nearly an eigenvector of a bulk that is far from 0, whatever lies beyond it.
        if not self._restarted and 2 * self._steps - 1 < needed:
            return False
        values = torch.linalg.eigvalsh(sign * self._basis.projected)
        if leak <= self._tol * float(values[-1] - values[0]):
            return True
        margin = (bound - leading) / (bound - float(values[0]))
        return math.sqrt(margin) * (2 * self._steps - 1) >= needed

    def _residual(self, coefficients: Tensor) -> Tensor:
        """What the product of a combination of its vectors has outside the basis."""
        return self._basis.outside(self._basis.image(coefficients, self._rows))

    def _pairs(self, sign: int) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(sign * self._basis.projected[self._rows][:, self._rows])
        return values, vectors

    def _rounding(self) -> float:
        operator, scale = self._basis.operator, float(self._basis.projected.abs().max())
        flat = operator.rounding()
        return max(torch.finfo(operator.dtype).eps * scale, flat if scale <= flat else 0.0)

    def _restart(self, sign: int) -> None:
        """Make room: keep the better half of its Ritz vectors. The steps before still count, those after do not."""
        inside = self._basis.size - len(self._rows)
        kept = max(1, len(self._rows) // 2)
        rotation = torch.zeros(self._basis.size, inside + kept, dtype=torch.float64)
        rotation[:inside, :inside] = torch.eye(inside, dtype=torch.float64)
        rotation[inside:, inside:] = self._pairs(sign)[1][:, -kept:]
        self._basis.compress(rotation)
        self._rows = list(range(inside, inside + kept))
        self._restarted = True


def random_unit(operator: SymmetricOperator, generator: torch.Generator, basis: Tensor) -> Tensor:
    """Random unit vector (n,) in float64, orthogonal to the orthonormal columns of ``basis`` (n, j)."""
    vector = torch.randn(operator.shape[0], dtype=torch.float64, generator=generator).to(operator.device)
    vector = orthogonalise(vector, basis)
    return vector / vector.norm()


def orthogonalise(vector: Tensor, basis: Tensor) -> Tensor:
    """Remove the components along the orthonormal columns of ``basis``; twice, which is enough (Parlett 1998)."""
    for _ in range(2):
        vector = vector - basis @ (basis.T @ vector)
    return vector


def product(operator: SymmetricOperator, vector: Tensor) -> Tensor:
    """Hv in the operator's own precision.

    Raises:
        FloatingPointError: The product is not finite.
    """
    result = operator.matvec(vector.to(operator.dtype))
    if not bool(result.isfinite().all()):
        raise FloatingPointError("a product with the operator is not finite: the spectrum cannot be computed here")
    return result
