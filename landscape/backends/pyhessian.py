"""PyHessian (Yao et al. 2020, arXiv 1912.07145) behind this package's results: an independent opinion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from landscape.algorithms.krylov import eigen_result
from landscape.operators import HessianOperator
from landscape.results import EigenResult
from landscape.risk import EmpiricalRisk


def pyhessian_eigenvalues(
    risk: EmpiricalRisk, k: int, *, tol: float = 1e-5, max_iterations: int = 500, seed: int = 0
) -> EigenResult:
    """Top-k eigenpairs as PyHessian's own power iteration and Hessian-vector products find them.

    Any risk can be passed, Hugging Face models included: PyHessian sees a module whose forward pass returns the
    per-example losses. The residuals are computed here, from products with `HessianOperator`.

    Args:
        risk: The mean loss; all its batches are used.
        k: Number of eigenpairs of largest magnitude.
        tol: Relative change of an eigenvalue at which PyHessian stops (its default, 1e-3, leaves 1 % errors).
        max_iterations: Products per eigenpair at most.
        seed: Seed of PyHessian's draws; the global generator is put back afterwards.

    Returns:
        Eigenpairs; ``num_matvecs`` is the number of residual products, as PyHessian does not count its own.
    """
    from pyhessian import hessian

    module = _LossModule(risk)
    data = [(torch.full((size,), index), torch.zeros(size)) for index, size in enumerate(risk.batch_sizes)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        computation = hessian(module, lambda losses, _: losses.mean(), dataloader=data, cuda=False)
        values, vectors = computation.eigenvalues(maxIter=max_iterations, tol=tol, top_n=k)
    columns = torch.stack([torch.cat([part.reshape(-1) for part in vector]) for vector in vectors], dim=1)
    columns = columns.detach() / columns.norm(dim=0)
    operator = HessianOperator(risk)
    return eigen_result(
        operator,
        columns.double(),
        operator.matmat(columns).double(),
        torch.tensor(values, dtype=torch.float64),
        num_matvecs=k,
        tol=tol,
    )


class _LossModule(nn.Module):
    """The risk as a module: batch number in (repeated), per-example losses out."""

    def __init__(self, risk: EmpiricalRisk) -> None:
        super().__init__()
        self._risk = [risk]  # in a list, so that the model's own parameters are not registered
        parts = risk.layout.split(risk.theta)
        self.weights = nn.ParameterList([nn.Parameter(part.clone()) for part in parts.values()])

    def forward(self, batch_number: Tensor) -> Tensor:
        risk = self._risk[0]
        parameters = dict(zip(risk.layout.names, self.weights, strict=True))
        return risk.batch_losses(risk.batches[int(batch_number[0])], parameters)
