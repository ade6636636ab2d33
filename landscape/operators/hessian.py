"""The Hessian of an empirical risk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from landscape.operators.graphs import RiskOperator


class HessianOperator(RiskOperator[Tensor]):
    r"""Hessian :math:`H = \nabla^2 L(\theta)` of the mean loss over the data.

    The gradient of each batch is built once with its graph; each product
    :math:`Hv = \nabla\langle\nabla L, v\rangle` (Pearlmutter 1994) is then one backward pass through the kept
    graphs, about two gradient evaluations. Arguments, memory and errors: see `RiskOperator`.

    >>> from landscape.risk import EmpiricalRisk
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> batch = (torch.tensor([[1.0], [3.0]]), torch.zeros(2))
    >>> risk = EmpiricalRisk(model, [batch], loss=lambda out, batch: out.square().sum(dim=1))
    >>> HessianOperator(risk).to_dense()  # 2/N Σ x²
    tensor([[10.]])
    """

    def build(self, index: int) -> Tensor | None:
        """Gradient (n,) of the batch's summed loss, with its graph."""
        _, losses = self.losses(index)
        if not losses.requires_grad:
            return None
        summed = (losses * self.risk.weights[index]).sum()
        return torch.autograd.grad(summed, self.theta, create_graph=True)[0]

    def apply(self, graphs: Sequence[Tensor], vector: Tensor, retain: bool) -> Tensor:
        curved = [gradient for gradient in graphs if gradient.requires_grad]  # the others are constant in theta
        if not curved:
            return torch.zeros_like(vector)
        seeds = [vector] * len(curved)
        (product,) = torch.autograd.grad(curved, self.theta, seeds, retain_graph=retain, materialize_grads=True)
        return product

    def value(self, epsilon: Tensor) -> Tensor:
        """Gradient (n,) of the mean loss."""
        return self.risk.gradient(self.theta.detach() + epsilon)

    def derivative(self, vector: Tensor) -> Tensor:
        """Hv."""
        return self.matvec(vector)
