"""Thick-restart Lanczos with full reorthogonalisation, for one vector or a block at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from landscape.algorithms.eigenpairs import (
    check_request,
    eigen_result,
    relative_residuals,
    resolution,
    start_columns,
)
from landscape.algorithms.krylov import Callback, KrylovBasis, OutsideProbe
from landscape.algorithms.results import EigenResult
from landscape.algorithms.storage import Storage, affordable_vectors
from landscape.asking import expect_callable, expect_count, expect_seed
from landscape.operators.base import SymmetricOperator

Which = Literal["LA", "SA", "LM"]

_BASIS_BYTES = 2**30
"""Memory that the default basis may take."""

_RESOLVED = 1e-3
"""Relative residual at which the extreme pair outside is known well enough to say that it does not belong inside."""

_TIES = 100
"""Eigenvalues this close, in units of rounding, are copies of each other: whichever is returned is right."""


def lanczos(
    operator: SymmetricOperator,
    k: int,
    *,
    which: Which = "LA",
    tol: float = 1e-4,
    max_matvecs: int = 1_000,
    basis_size: int | None = None,
    block_size: int = 1,
    start: Tensor | None = None,
    storage: Storage = "auto",
    seed: int = 0,
    callback: Callback | None = None,
) -> EigenResult:
    r"""Compute k extreme eigenpairs in a Krylov space that is restarted with its best Ritz vectors.

    The basis Q and the products W = HQ are kept (see ``storage``), every new vector is orthogonalised against the whole
    basis twice (so no ghost copies arise), and :math:`Q^\top W` is diagonalised. The space grows by the residual of
    the first wanted Ritz pair that has not converged: in a Krylov space every residual points along the next Lanczos
    vector, and from a ``start`` block the pairs are improved one after the other. At ``basis_size`` columns the
    space is compressed to the wanted half of the Ritz vectors (thick restart: Wu and Simon 2000, SIAM J. Matrix Anal.
    Appl. 22(2), section 3). A Krylov space holds one vector of a repeated eigenvalue only, so pairs whose residuals are
    small are not enough: a second sequence from a random vector outside them looks for others that belong before them
    (`landscape.algorithms.krylov.OutsideProbe`), and what it finds is taken up.

    Args:
        operator: Symmetric operator (n, n).
        k: Number of eigenpairs.
        which: ``LA`` largest algebraic, ``SA`` smallest algebraic, ``LM`` largest magnitude.
        tol: Residual at which a pair counts as converged, relative to its eigenvalue, or to the products' rounding over
            ``tol`` where that is more.
        max_matvecs: Products after which the best pairs so far are returned.
        basis_size: Columns of Q, at least k + 2; by default 60, fewer where they would take more than 1 GiB, but at
            least 2k + 10, on disk if need be (see ``storage``). Few columns cost more products.
            Memory: 2 · n · basis_size numbers beside what a product takes, 2 · n · k numbers at the end.
        block_size: Vectors added at a time. A block finds as many copies of a repeated eigenvalue as it is wide.
        start: Vectors (n, m) to begin with, such as the eigenvectors at an earlier point of a trajectory; a random
            vector is added to them, so that directions they miss can appear. Default: random.
        storage: Where Q and W lie: ``float64`` or ``float32`` on the operator's device, or ``cpu``, float64 in main
            memory while products run on a device; or ``disk``, a temporary file in the operator's precision. Inner
            products are taken in float64 everywhere. ``auto`` is float64 unless that and a product take more than a
            quarter of the free memory, then float32 for a float32 operator, whose products have no more digits, then
            disk; the result's ``storage`` says which.
        seed: Seed of the random vectors.
        callback: Called as ``callback(num_matvecs, worst_residual)`` after every step (for a progress bar); a true
            answer ends the run with the best pairs so far.

    Returns:
        Eigenpairs in descending order with residuals and converged flags.

    Raises:
        ValueError: k is not between 1 and n, or an option is unknown.
        FloatingPointError: A product is not finite, or the operator is not symmetric.

    >>> from landscape.operators import DenseOperator
    >>> result = lanczos(DenseOperator(torch.diag(torch.arange(6.0))), k=2)
    >>> [round(float(value), 4) for value in result.eigenvalues]
    [5.0, 4.0]
    """
    check_request(operator, k, tol)
    if which not in ("LA", "SA", "LM"):
        raise ValueError(f"which: expected 'LA', 'SA' or 'LM', got {which!r}")
    for name, count in (("block_size", block_size), ("max_matvecs", max_matvecs), ("basis_size", basis_size or 1)):
        expect_count(name, count)
    expect_seed(seed)
    expect_callable("callback", callback)
    n = operator.shape[0]
    starts = start_columns(operator, start)
    least = max(k, starts.shape[1]) + 2 * block_size
    size = min(n, max(basis_size or _default_size(operator, k, storage), least))
    basis = KrylovBasis(operator, size, seed, storage=storage)
    for column in starts.T:
        basis.grow(column)
    for _ in range(min(size - basis.size, max(1, block_size - basis.size))):
        basis.grow(None)
    checked = -1
    while True:
        ended = _converge(basis, k, which, tol, max_matvecs, block_size, callback)
        confirmed = _confirm(basis, k, which, tol, 0 if ended else max_matvecs, callback)
        if confirmed is None:
            continue  # something outside belongs before the last pair
        basis.check_symmetric()
        values, rotation = torch.linalg.eigh(basis.projected)
        chosen = _order(values, which)[:k]
        vectors, images = basis.ritz(rotation[:, chosen])
        scale = float(values.abs().max())
        result = eigen_result(
            operator, vectors, images, values[chosen], basis.num_matvecs, tol, scale=scale, confirmed=confirmed
        )
        short = bool((result.residuals > tol).any()) and basis.num_matvecs < max_matvecs
        if short and not ended and basis.num_matvecs > checked:
            checked = basis.num_matvecs
            continue  # what the probe brought in is not resolved yet
        return replace(result, storage=basis.storage)


def _default_size(operator: SymmetricOperator, k: int, storage: Storage) -> int:
    """Columns of Q: what a gigabyte holds, at most 60, but 2k + 10 if memory of the kind asked for holds those."""
    roomy = min(60, _BASIS_BYTES // (2 * 8 * operator.shape[0]))
    wanted = 2 * k + 10
    return max(roomy, wanted if storage in ("auto", "disk") else min(wanted, affordable_vectors(operator) // 2))


def _converge(
    basis: KrylovBasis,
    k: int,
    which: Which,
    tol: float,
    max_matvecs: int,
    block_size: int,
    callback: Callback | None,
) -> bool:
    """Grow the basis until the wanted Ritz pairs have small residuals; whether the run was ended before."""
    pair = 0  # the wanted pairs before this one have been seen to converge
    while True:
        values, rotation = torch.linalg.eigh(basis.projected)
        wanted = _order(values, which)
        chosen = wanted[: min(k, basis.size)]
        smallest = resolution(basis.operator, float(values.abs().max()), tol)
        pair = min(pair, len(chosen) - 1)
        while True:
            worked_on = chosen[pair : pair + block_size]
            vectors, images = basis.ritz(rotation[:, worked_on])
            residuals = relative_residuals(vectors, images, values[worked_on], smallest)
            if bool((residuals > tol).any()) or pair + block_size >= len(chosen):
                break
            pair += block_size
        ended = bool(callback and callback(basis.num_matvecs, float(residuals.max())))
        ended = ended or basis.num_matvecs >= max_matvecs
        if basis.size >= k:
            if ended or basis.is_complete:
                return ended
            if bool((residuals <= tol).all()):
                vectors, images = basis.ritz(rotation[:, chosen])
                everyone = relative_residuals(vectors, images, values[chosen], smallest)
                if bool((everyone <= tol).all()):
                    return False
                pair = int((everyone > tol).nonzero()[0])  # it has changed since
                worked_on = chosen[pair : pair + block_size]
                vectors, images = basis.ritz(rotation[:, worked_on])
        if basis.size + block_size > basis.capacity and basis.capacity != basis.operator.shape[0]:
            basis.compress(rotation[:, wanted[: max(k + 1, min(basis.capacity // 2, basis.capacity - block_size))]])
        directions = list(images.addcmul_(vectors, values[worked_on].to(vectors), value=-1).unbind(dim=1))
        del vectors, images  # products need the memory
        for _ in range(min(len(directions), basis.capacity - basis.size)):
            basis.grow(directions.pop(0))


def _confirm(
    basis: KrylovBasis, k: int, which: Which, tol: float, max_matvecs: int, callback: Callback | None
) -> Tensor | None:
    """Whether each wanted pair, in descending order of the wish, has nothing outside that belongs before it.

    Returns:
        (k,) flags, or nothing when the probe has found something that does.
    """
    if basis.is_complete:
        return torch.ones(k, dtype=torch.bool)
    values, rotation = torch.linalg.eigh(basis.projected)
    chosen = _order(values, which)[:k]
    scale = float(values.abs().max())
    basis.compress(rotation[:, chosen])
    probe = OutsideProbe(basis, max(tol, _RESOLVED))
    slack = (tol * values[chosen].abs()).clamp(min=_TIES * torch.finfo(basis.operator.dtype).eps * scale)
    signs = {"LA": [1], "SA": [-1], "LM": [1, -1]}[which]
    sizes = values[chosen].abs() if which == "LM" else signs[0] * values[chosen]
    bounds = [float(bound) for bound in sizes + slack]
    while True:
        open_ends = [sign for sign in signs if not probe.rules_out(bounds[-1], sign)]
        if not open_ends:
            return torch.ones(k, dtype=torch.bool)
        if any(probe.leading(sign) > bounds[-1] for sign in open_ends):
            return None
        ended = basis.num_matvecs >= max_matvecs or bool(callback and callback(basis.num_matvecs, tol))
        if ended:
            return torch.tensor([all(probe.rules_out(bound, sign) for sign in signs) for bound in bounds])
        probe.step(open_ends[0])


def _order(values: Tensor, which: Which) -> Tensor:
    key = {"LA": values, "SA": -values, "LM": values.abs()}[which]
    return torch.argsort(key, descending=True)
