"""Are a model's second derivatives what its first derivatives say? Asked once, of a few examples in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape.batches import batch_size, map_tensors
from landscape.losses import Batch
from landscape.memory import SHARE, free_bytes
from landscape.risk import EmpiricalRisk
from landscape.slopes import STEPS, beside, first_rows

if TYPE_CHECKING:
    from landscape.operators.graphs import RiskOperator

_TOLERANCE = {torch.float64: 1e-3, torch.float32: 2e-2}
_VECTORS = 12
"""Vectors of weights in float64 that the check holds at a time."""


def check_second_derivatives(kind: type[RiskOperator[Any]], risk: EmpiricalRisk, theta: Tensor) -> None:
    r"""Compare products with central differences, and :math:`u^\top Hv` with :math:`v^\top Hu`.

    Autograd is wrong or silent about second derivatives where a custom function's backward is not differentiable, a
    part of the graph is detached on the way back, or a layer is rebuilt from something else: products are then
    asymmetric, or zero. Of the first batch the first few examples are looked at in float64, with random u and v; where
    the model does not run on a part of a batch, all of it, and where it does not run in float64, in its own precision
    and less sharply. Differences across a kink (an image's black pixels under a bias of zero) tell nothing of either
    side, so what disagrees is asked once more a thousandth away. A model that can be asked in none of these ways is
    taken as it is, with a warning; one of which a dozen vectors of weights in float64 would take a quarter of the free
    memory is taken as it is.

    Args:
        kind: Operator to ask.
        risk: The mean loss; asked once for every kind of operator and selection of weights, not in a process group.
        theta: Point (n,).

    Raises:
        ValueError: They differ.
    """
    asked = (kind, risk.layout.names)
    if asked in risk.consistent or risk.ranks.count > 1 or not risk.batches:
        return
    if _VECTORS * 8 * risk.num_params > SHARE * free_bytes(risk.device):
        return
    size = batch_size(risk.batches[0])
    few = map_tensors(risk.batches[0], lambda tensor: first_rows(tensor, size))
    reason = ""
    for dtype in dict.fromkeys((torch.float64, risk.dtype)):
        for batch in (few, risk.batches[0]):
            try:
                error, asymmetry = _errors(kind, risk, batch, theta.detach().to(dtype))
                if error > _TOLERANCE[dtype]:
                    error, asymmetry = _errors(kind, risk, batch, beside(theta.detach().to(dtype)))
            except (RuntimeError, ValueError, ArithmeticError, NotImplementedError) as failure:
                reason = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
                continue
            if max(error, asymmetry) > _TOLERANCE[dtype]:
                raise ValueError(
                    "risk: the model's second derivatives are not those of its first ones: central differences differ "
                    f"by {error:.1%}, u'Hv and v'Hu by {asymmetry:.1%}. Look for a custom autograd function whose "
                    "backward is not differentiable itself, a detached or checkpointed part, or a parametrised layer; "
                    "replace it by plain operations for the measurement, or pass check=False to take products as they "
                    "come"
                )
            risk.consistent.add(asked)
            return
    warnings.warn(
        f"the model's second derivatives could not be compared with differences of its first: {reason}", stacklevel=4
    )


def _errors(kind: type[RiskOperator[Any]], risk: EmpiricalRisk, batch: Batch, theta: Tensor) -> tuple[float, float]:
    """Relative difference to central differences, and asymmetry, of the products on one batch at theta (n,)."""
    small = EmpiricalRisk(
        risk.model, [batch], risk.loss_function, risk.layout.names, theta.dtype, l2=risk.l2, group=None, check=False
    )
    operator = kind(small, theta=theta, check=False)
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(len(theta), dtype=torch.float64, generator=generator).to(theta) for _ in range(2))
    u, v = u / u.norm(), v / v.norm()
    hv, hu, pushed = operator.matvec(v), operator.matvec(u), operator.derivative(v)
    if max(float(hv.norm()), float(hu.norm()), float(pushed.norm())) <= operator.rounding():
        return _flat(operator, v, float(1 + theta.norm()), abs(small.loss(theta))), 0.0
    error = math.inf
    # Larger steps for parts of a model that compute in float32 whatever its weights are, as norms do in some.
    for step in dict.fromkeys((*STEPS[theta.dtype], *STEPS[torch.float32])):
        if error > _TOLERANCE[theta.dtype]:
            error = min(error, _difference(pushed, operator.value, v, step * float(1 + theta.norm())))
    scale = float(hv.norm() + hu.norm())
    return error, abs(float(u @ hv - v @ hu)) / scale if scale > 0 else 0.0


def _flat(operator: RiskOperator[Any], v: Tensor, size: float, loss: float) -> float:
    """Whether products that are rounding are those of a flat loss, as of a bias that softmax cancels: 0, else 1.

    Of some step the change of the gradient must be rounding of the loss over the longest one.
    """
    least = 100 * torch.finfo(v.dtype).eps * loss / (STEPS[v.dtype][0] * size)
    for step in dict.fromkeys((*STEPS[v.dtype], *STEPS[torch.float32])):
        change = operator.value(step * size * v) - operator.value(-step * size * v)
        if float(change.norm()) / (2 * step * size) <= least:
            return 0.0
    return 1.0


def _difference(pushed: Tensor, value: Callable[[Tensor], Tensor], direction: Tensor, step: float) -> float:
    """Relative difference of a derivative along a direction to a central difference; 0 where both are rounding."""
    above, below = value(step * direction), value(-step * direction)
    numeric = (above - below) / (2 * step)
    rounding = 100 * torch.finfo(pushed.dtype).eps * float(above.norm()) / step
    size = max(float(pushed.norm()), float(numeric.norm()))
    error = float((pushed - numeric).norm()) - rounding
    return max(error, 0.0) / size if size > 0 else 0.0
