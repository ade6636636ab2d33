"""References that share no code with the package: dense float64 Hessians and exact trust-region solutions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

Array = NDArray[np.float64]


def dense_hessian(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """Hessian (n, n) of a scalar function, row by row through double backward (torch.func.hessian is not safe)."""
    point = point.detach().double().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point), point, create_graph=True)
    rows = [torch.autograd.grad(entry, point, retain_graph=True)[0] for entry in gradient]
    return torch.stack(rows)


def trust_region_maximum(gradient: Array, hessian: Array, rho: float) -> tuple[float, Array]:
    """Maximum of gᵀe + ½eᵀHe over ‖e‖ ≤ rho for g in general position, from the eigendecomposition of H.

    At a boundary solution (mu I − H)e = g with mu above the largest eigenvalue (More and Sorensen 1983).
    """
    values, vectors = np.linalg.eigh(hessian)
    coefficients = vectors.T @ gradient
    top = values[-1]

    def excess(mu: float) -> float:
        return float(np.linalg.norm(coefficients / (mu - values)) - rho)

    if top < 0 and excess(0.0) <= 0:
        epsilon = vectors @ (coefficients / -values)  # the maximum of a concave function inside the ball
    else:
        low = max(top, 0.0) + 1e-12
        mu = brentq(excess, low, low + np.linalg.norm(gradient) / rho + 1.0, xtol=1e-14)
        epsilon = vectors @ (coefficients / (mu - values))
    return float(gradient @ epsilon + 0.5 * epsilon @ hessian @ epsilon), epsilon
