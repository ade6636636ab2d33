"""Curvature made of Jacobians: the generalised Gauss-Newton matrix and the empirical Fisher matrix."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.batches import to_device
from landscape.losses import Batch, logits_of
from landscape.operators.graphs import Parts, RiskOperator
from landscape.risk import EmpiricalRisk

_ROUNDING = 1e-3
"""Of two ways to the same gradient, as a share of it."""


@dataclass(frozen=True)
class _Jacobian:
    r"""Jacobian J of ``values`` in theta: Jᵀu by a backward pass, Jv through the graph of Jᵀu, linear in u.

    Attributes:
        values: Function values of any shape, with their graph.
        cotangent: u, of the same shape.
        pulled: Jᵀu, with its graph in u.
    """

    values: Tensor
    cotangent: Tensor
    pulled: Parts

    @classmethod
    def of(cls, values: Tensor, leaves: Sequence[Tensor]) -> _Jacobian:
        cotangent = torch.zeros_like(values, requires_grad=True)
        return cls(
            values, cotangent, torch.autograd.grad(values, leaves, cotangent, create_graph=True, allow_unused=True)
        )

    def push(self, parts: Sequence[Tensor]) -> Tensor:
        """Jv, in the shape of the values, for a vector v given as its tensors."""
        linear = [
            (pulled, part)
            for pulled, part in zip(self.pulled, parts, strict=True)
            if pulled is not None and pulled.requires_grad
        ]
        if not linear:
            return torch.zeros_like(self.values)
        pulled, vector = zip(*linear, strict=True)
        (pushed,) = torch.autograd.grad(pulled, self.cotangent, vector, retain_graph=True)
        return pushed


class _JacobianOperator(RiskOperator[tuple[_Jacobian, Tensor]]):
    """An operator made of Jacobians of some function of theta."""

    @abstractmethod
    def _function(self, outputs: object, batch: Batch, parameters: Mapping[str, Tensor]) -> Tensor:
        """The function whose Jacobian it is, of one batch."""

    def value(self, epsilon: Tensor) -> Tensor:
        """The function's values over the data, flattened."""
        parameters = self.risk.layout.split(self.theta + epsilon)
        with torch.no_grad():
            values = [
                self._function(self.risk.outputs(batch, parameters, rest=self._rest), batch, parameters)
                for batch in self.risk.batches
            ]
        return torch.cat([value.flatten() for value in values])

    def derivative(self, vector: Tensor) -> Tensor:
        """Jv, flattened."""
        graphs = [self._built(index) for index in range(len(self.risk.batches))]
        parts = self._split(vector)
        return torch.cat([graph[0].push(parts).flatten() for graph in graphs if graph is not None])

    def _split(self, vector: Tensor) -> list[Tensor]:
        return list(self.risk.layout.split(vector).values())


class GGNOperator(_JacobianOperator):
    r"""Generalised Gauss-Newton matrix :math:`\sum_i w_i J_i^\top (\nabla_z^2 \ell_i) J_i / \sum_i w_i`.

    J is the Jacobian of the model's logits z in theta; the loss's own Hessian acts on vectors of logits by a double
    backward pass and is never formed, so memory does not grow with the square of the vocabulary. Equal to the Hessian
    for a model that is linear in theta (Schraudolph 2002, Neural Computation 14(7), section 3). Arguments, memory
    and errors: see `RiskOperator`; a loss that reads more of the outputs than the logits is refused, too.
    """

    def __init__(self, risk: EmpiricalRisk, *, check: bool = True, **options: Any) -> None:
        super().__init__(risk, check=check, **options)
        if check and risk.batches:
            self._check_logits_alone()

    def _check_logits_alone(self) -> None:
        """Refuse a loss of more than the logits, an auxiliary one of a mixture's router say.

        Raises:
            ValueError: Its gradient is not what the logits pass on.
        """
        batch = to_device(self.risk.batches[0], self.device)
        with torch.enable_grad():
            outputs = self.risk.outputs(batch, self._parameters, rest=self._rest)
            if isinstance(outputs, Tensor):  # nothing else to read
                return
            total = self.risk.losses_of(outputs, batch).sum()
        logits = logits_of(outputs)
        if not (total.requires_grad and logits.requires_grad):
            return
        options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        (slope,) = torch.autograd.grad(total, logits, retain_graph=True, **options)
        whole = torch.autograd.grad(total, self.leaves, retain_graph=True, **options)
        passed_on = torch.autograd.grad(logits, self.leaves, slope, **options)
        rest = torch.stack([(one - other).norm() for one, other in zip(whole, passed_on, strict=True)]).norm()
        if rest > _ROUNDING * torch.stack([one.norm() for one in whole]).norm():
            raise ValueError(
                "loss: it reads more of the model's outputs than the logits, and the Gauss-Newton matrix is of what "
                "the loss makes of the logits; use HessianOperator, or a loss without that part"
            )

    def build(self, index: int) -> tuple[_Jacobian, Tensor] | None:
        """Jacobian of the logits, and the gradient of the batch's summed loss in them, with its graph."""
        outputs, losses = self.losses(index)
        logits = logits_of(outputs)
        if not (losses.requires_grad and logits.requires_grad):
            return None
        with torch.enable_grad():
            summed = (losses * self.risk.weights[index]).sum()
        (slope,) = torch.autograd.grad(summed, logits, create_graph=True)
        return _Jacobian.of(logits, self.leaves), slope

    def pullback(
        self, graphs: Sequence[tuple[_Jacobian, Tensor]], vector: Tensor
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        curved = [graph for graph in graphs if graph[1].requires_grad]  # other losses are linear in the logits
        parts = self._split(vector)
        cotangents = [
            torch.autograd.grad(
                slope, jacobian.values, jacobian.push(parts), retain_graph=True, materialize_grads=True
            )[0]
            for jacobian, slope in curved
        ]
        return [jacobian.values for jacobian, _ in curved], cotangents

    def matvec(self, vector: Tensor) -> Tensor:
        """Product (n,) with a vector (n,); a penalty is its own Gauss-Newton matrix."""
        product = super().matvec(vector)
        return product + 2 * self.risk.l2 * vector.to(product) if self.risk.l2 else product

    def _function(self, outputs: object, batch: Batch, parameters: Mapping[str, Tensor]) -> Tensor:
        return logits_of(outputs)


class EmpiricalFisherOperator(_JacobianOperator):
    r"""Empirical Fisher matrix :math:`\sum_i w_i \nabla\ell_i \nabla\ell_i^\top / \sum_i w_i`.

    The second moment of the per-example gradients, a penalty's included, at the data's own labels (Kunstner et al.
    2019, arXiv 1905.12558, section 1), which is not the Fisher information in general; an example of a token loss is a
    whole sequence. Arguments, memory and errors: see `RiskOperator`.
    """

    def build(self, index: int) -> tuple[_Jacobian, Tensor] | None:
        """Jacobian of the per-example losses, and the examples' weights."""
        _, losses = self.losses(index)
        if not losses.requires_grad:
            return None
        return _Jacobian.of(losses, self.leaves), self.risk.weights[index]

    def pullback(
        self, graphs: Sequence[tuple[_Jacobian, Tensor]], vector: Tensor
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        parts = self._split(vector)
        return [jacobian.values for jacobian, _ in graphs], [w * jacobian.push(parts) for jacobian, w in graphs]

    def _function(self, outputs: object, batch: Batch, parameters: Mapping[str, Tensor]) -> Tensor:
        return self.risk.losses_of(outputs, batch) + self.risk.penalty(parameters)
