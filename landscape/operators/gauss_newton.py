"""Curvature made of Jacobians: the generalised Gauss-Newton matrix and the empirical Fisher matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.losses import logits_of
from landscape.operators.graphs import RiskOperator


@dataclass(frozen=True)
class _Jacobian:
    r"""Jacobian J of ``values`` in theta: Jᵀu by a backward pass, Jv through the graph of Jᵀu, linear in u.

    Attributes:
        values: Function values of any shape, with their graph.
        cotangent: u, of the same shape.
        pulled: Jᵀu (n,), with its graph in u.
    """

    values: Tensor
    cotangent: Tensor
    pulled: Tensor

    @classmethod
    def of(cls, values: Tensor, theta: Tensor) -> _Jacobian:
        cotangent = torch.zeros_like(values, requires_grad=True)
        (pulled,) = torch.autograd.grad(values, theta, cotangent, create_graph=True)
        return cls(values, cotangent, pulled)

    def push(self, vector: Tensor) -> Tensor:
        """Jv, in the shape of the values."""
        (pushed,) = torch.autograd.grad(self.pulled, self.cotangent, vector, retain_graph=True)
        return pushed


def _pull(jacobians: Sequence[_Jacobian], theta: Tensor, cotangents: Sequence[Tensor], retain: bool) -> Tensor:
    """Sum of Jᵀu (n,)."""
    values = [jacobian.values for jacobian in jacobians]
    (pulled,) = torch.autograd.grad(values, theta, list(cotangents), retain_graph=retain)
    return pulled


class GGNOperator(RiskOperator[tuple[_Jacobian, Tensor]]):
    r"""Generalised Gauss-Newton matrix :math:`\sum_i w_i J_i^\top (\nabla_z^2 \ell_i) J_i / \sum_i w_i`.

    J is the Jacobian of the model's logits z in theta; the loss's own Hessian acts on vectors of logits by a double
    backward pass and is never formed, so memory does not grow with the square of the vocabulary. Equal to the Hessian
    for a model that is linear in theta (Schraudolph 2002, Neural Computation 14(7), section 3). Arguments, memory
    and errors: see `RiskOperator`.
    """

    def build(self, index: int) -> tuple[_Jacobian, Tensor]:
        """Jacobian of the logits, and the gradient of the batch's summed loss in them, with its graph."""
        outputs, losses = self.losses(index)
        logits = logits_of(outputs)
        summed = (losses * self.risk.weights[index]).sum()
        (slope,) = torch.autograd.grad(summed, logits, create_graph=True)
        return _Jacobian.of(logits, self.theta), slope

    def apply(self, graphs: Sequence[tuple[_Jacobian, Tensor]], vector: Tensor, retain: bool) -> Tensor:
        curved = [graph for graph in graphs if graph[1].requires_grad]  # other losses are linear in the logits
        if not curved:
            return torch.zeros_like(vector)
        cotangents = [
            torch.autograd.grad(
                slope, jacobian.values, jacobian.push(vector), retain_graph=True, materialize_grads=True
            )[0]
            for jacobian, slope in curved
        ]
        return _pull([jacobian for jacobian, _ in curved], self.theta, cotangents, retain)


class EmpiricalFisherOperator(RiskOperator[tuple[_Jacobian, Tensor]]):
    r"""Empirical Fisher matrix :math:`\sum_i w_i \nabla\ell_i \nabla\ell_i^\top / \sum_i w_i`.

    The second moment of the per-example gradients at the data's own labels (Kunstner et al. 2019, arXiv 1905.12558,
    section 1), which is not the Fisher information in general; an example of a token loss is a whole sequence.
    Arguments, memory and errors: see `RiskOperator`.
    """

    def build(self, index: int) -> tuple[_Jacobian, Tensor]:
        """Jacobian of the per-example losses, and the examples' weights."""
        _, losses = self.losses(index)
        return _Jacobian.of(losses, self.theta), self.risk.weights[index]

    def apply(self, graphs: Sequence[tuple[_Jacobian, Tensor]], vector: Tensor, retain: bool) -> Tensor:
        cotangents = [weights * jacobian.push(vector) for jacobian, weights in graphs]
        return _pull([jacobian for jacobian, _ in graphs], self.theta, cotangents, retain)
