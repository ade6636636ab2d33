"""PyHessian (Yao et al. 2020, arXiv 1912.07145) behind this package's results: an independent opinion.

Any risk can be passed, Hugging Face models included: PyHessian sees a module whose forward pass returns the
per-example losses. The global random generator, from which it draws, is put back afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from landscape.algorithms.eigenpairs import eigen_result
from landscape.algorithms.results import EigenResult, SpectralDensity, TraceResult
from landscape.algorithms.spectral_density import smoothed_density
from landscape.algorithms.trace import FEWEST_SAMPLES
from landscape.asking import expect_count, expect_number, expect_risk, expect_seed
from landscape.operators import HessianOperator
from landscape.risk import EmpiricalRisk


def pyhessian_eigenvalues(
    risk: EmpiricalRisk, k: int, *, tol: float = 1e-5, max_iterations: int = 500, seed: int = 0
) -> EigenResult:
    """Top-k eigenpairs as PyHessian's own power iteration and Hessian-vector products find them.

    Args:
        risk: The mean loss; all its batches are used.
        k: Number of eigenpairs of largest magnitude.
        tol: Relative change of an eigenvalue at which PyHessian stops (its default, 1e-3, leaves 1 % errors).
        max_iterations: Products per eigenpair at most.
        seed: Seed of PyHessian's draws.

    Returns:
        Eigenpairs with residuals computed here, from products with `HessianOperator`; ``num_matvecs`` is the number
        of those, as PyHessian does not count its own.
    """
    _check(risk, seed, k=k, max_iterations=max_iterations)
    expect_number("tol", tol)
    if k > risk.num_params:
        raise ValueError(f"k: expected at most n = {risk.num_params} eigenpairs, got {k}")
    with _computation(risk, seed) as computation:
        values, vectors = computation.eigenvalues(maxIter=max_iterations, tol=tol, top_n=k)
    columns = torch.stack([vector.detach() for (vector,) in vectors], dim=1)
    columns = columns / columns.norm(dim=0)
    operator = HessianOperator(risk)
    return eigen_result(
        operator,
        columns.double(),
        operator.matmat(columns).double(),
        torch.tensor(values, dtype=torch.float64),
        num_matvecs=k,
        tol=tol,
    )


def pyhessian_trace(risk: EmpiricalRisk, *, tol: float = 1e-3, max_matvecs: int = 300, seed: int = 0) -> TraceResult:
    """Trace by PyHessian's Hutchinson estimator, with the standard error of its samples computed here.

    Args:
        risk: The mean loss; all its batches are used.
        tol: Relative change of the running mean at which PyHessian stops. That is not an error: it stops after a few
            samples by chance, after two where the mean is negative, and ``converged`` compares the standard error of
            ten samples or more with ``tol`` instead.
        max_matvecs: Samples at most.
        seed: Seed of PyHessian's draws.
    """
    _check(risk, seed, max_matvecs=max_matvecs)
    expect_number("tol", tol)
    with _computation(risk, seed) as computation:
        samples = torch.tensor(computation.trace(maxIter=max_matvecs, tol=tol), dtype=torch.float64)
    trace = float(samples.mean())
    stderr = float(samples.std() / math.sqrt(len(samples))) if len(samples) > 1 else math.inf
    enough = len(samples) >= FEWEST_SAMPLES and stderr <= tol * abs(trace)
    return TraceResult(trace, stderr, len(samples), enough, tol, "pyhessian")


def pyhessian_density(
    risk: EmpiricalRisk, *, num_steps: int = 50, num_probes: int = 4, width: float | None = None, seed: int = 0
) -> SpectralDensity:
    """Spectral density from PyHessian's stochastic Lanczos quadrature, smoothed as `spectral_density` does.

    PyHessian diagonalises with ``torch.eig``, which PyTorch has removed; for the length of the call it gets
    `torch.linalg.eigh` (the matrix is symmetric) in the old function's place.

    Args:
        risk: The mean loss; all its batches are used.
        num_steps: Lanczos steps of each probe, at most the number of weights.
        num_probes: Random vectors.
        width: Standard deviation of the Gaussian; default 1 % of the range found.
        seed: Seed of PyHessian's draws.
    """
    _check(risk, seed, num_steps=num_steps)
    expect_count("num_probes", num_probes, least=2)
    with _computation(risk, seed) as computation, mock.patch.object(torch, "eig", _eig, create=True):
        nodes, weights = computation.density(iter=min(num_steps, risk.num_params), n_v=num_probes)
    pairs = [
        (torch.tensor(values, dtype=torch.float64), torch.tensor(shares, dtype=torch.float64))
        for values, shares in zip(nodes, weights, strict=True)
    ]
    return smoothed_density(pairs, width=width, num_points=1_000, num_matvecs=sum(len(values) for values in nodes))


def _check(risk: Any, seed: Any, **counts: Any) -> None:
    """Refuse what PyHessian would trip over, and ranks of a group, of whose data it sees one part each.

    Raises:
        ValueError: There is such a thing.
    """
    expect_risk(risk)
    expect_seed(seed)
    for name, count in counts.items():
        expect_count(name, count)
    if risk.ranks.count > 1:
        raise ValueError(
            "risk: PyHessian knows no process group and would see this rank's data alone; pass EmpiricalRisk(..., "
            "group=None) on all of the data"
        )


@contextmanager
def _computation(risk: EmpiricalRisk, seed: int) -> Iterator[Any]:
    from pyhessian import hessian

    module = _LossModule(risk)
    data = [(torch.full((size,), index), torch.zeros(size)) for index, size in enumerate(risk.batch_sizes)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield hessian(module, lambda losses, _: losses.mean(), dataloader=data, cuda=False)


def _eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    """Eigenvalues in the first of two columns (real, imaginary), and the eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


class _LossModule(nn.Module):
    """The risk as a module: batch number in (repeated), per-example losses out, scaled to average to the risk."""

    def __init__(self, risk: EmpiricalRisk) -> None:
        super().__init__()
        self._risk = [risk]  # in a list, so that the model's own parameters are not registered
        self.theta = nn.Parameter(risk.theta)  # one vector: PyHessian fails on parameters that the loss does not use

    def forward(self, batch_number: Tensor) -> Tensor:
        risk, index = self._risk[0], int(batch_number[0])
        losses = risk.batch_losses(risk.batches[index], risk.layout.split(self.theta))
        scaled = losses * risk.weights[index] * (risk.num_examples / risk.total_weight)
        return scaled + 0.0 * self.theta.square().sum()  # PyHessian fails where the loss is linear in the weights
