"""Are a model's second derivatives what its first derivatives say? Asked once, of a few examples in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape.batches import batch_size, map_tensors
from landscape.memory import SHARE, free_bytes
from landscape.risk import EmpiricalRisk

if TYPE_CHECKING:
    from landscape.operators.graphs import RiskOperator

_EXAMPLES = 8
_STEPS = (1e-4, 1e-6, 1e-8)
"""Central differences' steps, over 1 + |theta|. A kink of a ReLU spoils some: the best one counts."""

_TOLERANCE = 1e-3
_VECTORS = 12
"""Vectors of weights in float64 that the check holds at a time."""


def check_second_derivatives(kind: type[RiskOperator[Any]], risk: EmpiricalRisk, theta: Tensor) -> None:
    r"""Compare products with central differences, and :math:`u^\top Hv` with :math:`v^\top Hu`.

    Autograd is wrong or silent about second derivatives where a custom function's backward is not differentiable, a
    part of the graph is detached on the way back, or a layer is rebuilt from something else: products are then
    asymmetric, or zero. Of the first batch the first few examples are looked at, with random u and v; models that do
    not run in float64, or not on a part of a batch, are taken as they are, and so are those of which a dozen vectors of
    weights in float64 would take a quarter of the free memory.

    Args:
        kind: Operator to ask.
        risk: The mean loss; asked once for every kind of operator, and not in a process group.
        theta: Point (n,).

    Raises:
        ValueError: They differ.
    """
    if kind in risk.consistent or risk.ranks.count > 1 or not risk.batches:
        return
    if _VECTORS * 8 * risk.num_params > SHARE * free_bytes(risk.device):
        return
    size = batch_size(risk.batches[0])
    few = map_tensors(risk.batches[0], lambda tensor: tensor[:_EXAMPLES] if tensor.shape[:1] == (size,) else tensor)
    try:
        small = EmpiricalRisk(
            risk.model, [few], risk.loss_function, risk.layout.names, torch.float64, l2=risk.l2, group=None, check=False
        )
        theta = theta.detach().double()
        operator = kind(small, theta=theta, check=False)
        generator = torch.Generator().manual_seed(0)
        u, v = (torch.randn(len(theta), dtype=torch.float64, generator=generator).to(theta) for _ in range(2))
        u, v = u / u.norm(), v / v.norm()
        hv, hu, pushed = operator.matvec(v), operator.matvec(u), operator.derivative(v)
        errors = [_difference(pushed, operator.value, v, step * float(1 + theta.norm())) for step in _STEPS]
    except (
        RuntimeError,
        ValueError,
        ArithmeticError,
        NotImplementedError,
    ):  # what is wrong there need not be wrong in earnest
        return
    scale = float(hv.norm() + hu.norm())
    asymmetry = abs(float(u @ hv - v @ hu)) / scale if scale > 0 else 0.0
    error = min(errors)
    if max(error, asymmetry) > _TOLERANCE:
        raise ValueError(
            f"risk: the model's second derivatives are not those of its first ones: central differences differ by "
            f"{error:.1%}, u'Hv and v'Hu by {asymmetry:.1%}. Look for a custom autograd function whose backward is not "
            "differentiable itself, a detached or checkpointed part, or a parametrised layer; replace it by plain "
            "operations for the measurement, or pass check=False to take products as they come"
        )
    risk.consistent.add(kind)


def _difference(pushed: Tensor, value: Callable[[Tensor], Tensor], direction: Tensor, step: float) -> float:
    """Relative difference of a derivative along a direction to a central difference; 0 where both are rounding."""
    above, below = value(step * direction), value(-step * direction)
    numeric = (above - below) / (2 * step)
    rounding = 100 * torch.finfo(torch.float64).eps * float(above.norm()) / step
    size = max(float(pushed.norm()), float(numeric.norm()))
    error = float((pushed - numeric).norm()) - rounding
    return max(error, 0.0) / size if size > 0 else 0.0
