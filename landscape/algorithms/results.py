"""What the algorithms return: numbers together with how exact they are and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from landscape.showing import Shown, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class EigenResult(Shown):
    r"""Eigenpairs of a symmetric operator.

    Attributes:
        eigenvalues: (k,) float64, descending.
        eigenvectors: (n, k), orthonormal columns, in the operator's dtype.
        residuals: (k,) :math:`\|Hv-\lambda v\|/\max(|\lambda|, s)` of the returned pairs, from products with H.
        converged: (k,) whether the residual reached ``tol`` and nothing that belongs before the pair can have been
            missed, as far as the algorithm can tell.
        num_matvecs: Products with H that were computed.
        tol: Residual asked for.
        resolution: s, the size below which ``tol`` times an eigenvalue would be the products' rounding.
        storage: How the algorithm kept its vectors.
        flat: Rounding of the operator's products where all eigenvalues found are below it, so that they may be zero; 0
            elsewhere.
    """

    table: ClassVar[tuple[str, ...]] = ("eigenvalues", "residuals", "converged")

    eigenvalues: Tensor
    eigenvectors: Tensor
    residuals: Tensor
    converged: Tensor
    num_matvecs: int
    tol: float
    resolution: float = 0.0
    storage: str = "float64"
    flat: float = 0.0

    def plot(self, ax: Axes | None = None) -> Axes:
        """The eigenvalues by rank, with the distances within which some eigenvalue of the operator lies."""
        ax = axes_or_new(ax)
        ranks = range(1, len(self.eigenvalues) + 1)
        ax.errorbar(ranks, self.eigenvalues.tolist(), yerr=self.error_bounds.tolist(), ls="none", marker="o")
        ax.set_xlabel("rank")
        ax.set_ylabel("eigenvalue")
        return ax

    @property
    def error_bounds(self) -> Tensor:
        """(k,) distances within which some eigenvalue of H lies from each returned one: residual and rounding."""
        sizes = self.eigenvalues.abs()
        rounding = torch.finfo(self.eigenvectors.dtype).eps * sizes.max(dim=0).values if len(sizes) else 0.0
        return self.residuals * sizes.clamp(min=self.resolution) + rounding + self.flat


@dataclass(frozen=True, repr=False)
class TraceResult(Shown):
    """Estimate of a trace.

    Attributes:
        trace: The estimate.
        stderr: Its standard error over the random samples; 0 where it was computed exactly.
        num_matvecs: Products with H.
        converged: Whether ``stderr`` was at most ``tol`` times the estimate's size at the last two checks, or is 0.
        tol: Relative standard error asked for.
        method: Estimator.
    """

    trace: float
    stderr: float
    num_matvecs: int
    converged: bool
    tol: float
    method: str


@dataclass(frozen=True, repr=False)
class SpectralDensity(Shown):
    """Smoothed distribution of the eigenvalues; its integral is 1.

    Attributes:
        grid: (m,) eigenvalues at which the density is given, ascending.
        density: (m,) mean over probes, in 1 / units of the eigenvalues.
        stderr: (m,) standard error of the mean over probes.
        width: Standard deviation of the Gaussian that smooths.
        nodes: Ritz values of each probe, ascending.
        weights: Their weights, which sum to 1 for each probe.
        num_matvecs: Products with H.
    """

    table: ClassVar[tuple[str, ...]] = ("grid", "density", "stderr")
    curve: ClassVar[tuple[str, str] | None] = ("grid", "density")

    grid: Tensor
    density: Tensor
    stderr: Tensor
    width: float
    nodes: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    num_matvecs: int

    def plot(self, ax: Axes | None = None) -> Axes:
        """The density over the eigenvalue on a logarithmic axis, six decades of it."""
        ax = super().plot(ax)
        ax.set_yscale("log")
        top = float(self.density.max())
        ax.set_ylim(1e-6 * top, 2 * top)
        ax.set_xlabel("eigenvalue")
        return ax
