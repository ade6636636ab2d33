"""The Hessian of an empirical risk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from landscape.operators.graphs import Parts, RiskOperator


class HessianOperator(RiskOperator[Parts]):
    r"""Hessian :math:`H = \nabla^2 L(\theta)` of the mean loss over the data.

    The gradient of each batch is built once with its graph; each product
    :math:`Hv = \nabla\langle\nabla L, v\rangle` (Pearlmutter 1994) is then one backward pass through the kept
    graphs, 1.8 to 2 gradient evaluations for transformers. Arguments, memory and errors: see `RiskOperator`.

    >>> from landscape.risk import EmpiricalRisk
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> batch = (torch.tensor([[1.0], [3.0]]), torch.zeros(2))
    >>> risk = EmpiricalRisk(model, [batch], loss=lambda out, batch: out.square().sum(dim=1))
    >>> HessianOperator(risk).to_dense()  # 2/N Σ x²
    tensor([[10.]])
    """

    def build(self, index: int) -> Parts | None:
        """Gradient of the batch's summed loss in every tensor, with its graph."""
        _, losses = self.losses(index)
        if not losses.requires_grad:
            return None
        with torch.enable_grad():
            summed = (losses * self.risk.weights[index]).sum()
        return torch.autograd.grad(summed, self.leaves, create_graph=True, allow_unused=True)

    def pullback(self, graphs: Sequence[Parts], vector: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        seeds = self.risk.layout.split(vector).values()
        curved = [  # the others are constant in theta
            (gradient, seed)
            for gradients in graphs
            for gradient, seed in zip(gradients, seeds, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        return [gradient for gradient, _ in curved], [seed for _, seed in curved]

    def value(self, epsilon: Tensor) -> Tensor:
        """Gradient (n,) of the mean loss."""
        return self.risk.gradient(self.theta + epsilon)

    def derivative(self, vector: Tensor) -> Tensor:
        """Hv."""
        return self.matvec(vector)
