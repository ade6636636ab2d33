"""Is what autograd calls the gradient the derivative of the loss? Asked once, of a few examples in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.batches import batch_size, map_tensors
from landscape.graph_nodes import coarsest_eps
from landscape.losses import Batch
from landscape.memory import SHARE, free_bytes

if TYPE_CHECKING:
    from landscape.risk import EmpiricalRisk

EXAMPLES = 8
STEPS = {torch.float64: (1e-4, 1e-6, 1e-8), torch.float32: (1e-1, 3e-2, 1e-2, 1e-3)}
"""Central differences' steps, over 1 + |theta|. A kink of a ReLU spoils some: the best one counts."""
_GROWING = {torch.float64: [10.0**k for k in range(-7, 0)], torch.float32: [10.0**k for k in range(-5, 0)]}
"""Steps of a loss's differences, the shortest first: the gradient at a sharp point bends within the longer ones."""
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 5e-2}
_ROUNDING = 100
"""Rounding of a loss, in units of its last digit."""
_BESIDE = 1e-3
_VECTORS = 8
"""Vectors of weights in float64 that the check holds at a time."""


def check_gradient(risk: EmpiricalRisk) -> None:
    r"""Compare :math:`u^\top\nabla L` with central differences of L.

    Autograd's gradient is another function's where a part of the model is detached, rounds straight-through or turns
    gradients around: searches along it find less than there is, and end as if that were all. Of the first batch the
    first few examples are looked at in float64 along a random u; where the model does not run on a part of a batch, all
    of it, and where a part of it computes in fewer digits, less sharply, and along the gradient too. At a kink (black
    pixels under a bias of zero) the derivative is what torch takes it for, so what disagrees is asked once more a
    thousandth away. A model that can be asked in none of these ways is taken as it is, and one of which eight vectors
    of weights in float64 would take a quarter of the free memory.

    Args:
        risk: The mean loss; asked once for every selection of weights, not in a process group.

    Raises:
        ValueError: They differ.
    """
    asked = (type(risk), risk.layout.names)
    if asked in risk.consistent or risk.ranks.count > 1:
        return
    if _VECTORS * 8 * risk.num_params > SHARE * free_bytes(risk.device):
        return
    size = batch_size(risk.batches[0])
    few = map_tensors(risk.batches[0], lambda tensor: first_rows(tensor, size))
    for dtype in dict.fromkeys((torch.float64, risk.dtype)):
        for batch in (few, risk.batches[0]):
            theta = risk.theta.to(dtype)
            try:
                found = _differing(risk, batch, theta)
                if found is not None:
                    found = _differing(risk, batch, beside(theta))
            except (RuntimeError, ValueError, ArithmeticError, NotImplementedError, TypeError):
                continue  # it does not run in this precision, or on a part of a batch
            if found is not None:
                claimed, numeric = found
                raise ValueError(
                    "model: its gradient is not the derivative of its loss: along one direction autograd says "
                    f"{claimed:.4g}, central differences of the loss {numeric:.4g}. Look for a part that is detached "
                    "(as the weight norms of DoRA: merge such adapters), that rounds straight-through, or whose hooks "
                    "or custom functions change gradients; mend it, leave it out by params, or pass check=False to "
                    "take gradients as they come"
                )
            risk.consistent.add(asked)
            return


def _differing(risk: EmpiricalRisk, batch: Batch, theta: Tensor) -> tuple[float, float] | None:
    """Derivative along a direction by autograd, and by differences, where these differ at theta (n,)."""
    from landscape.risk import EmpiricalRisk  # which asks this as it is made

    small = EmpiricalRisk(
        risk.model, [batch], risk.loss_function, risk.layout.names, theta.dtype, l2=risk.l2, group=None, check=False
    )
    loss, gradient = small.loss_and_gradient(theta)
    if not math.isfinite(loss):  # which searches say in their own words
        return None
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(len(theta), dtype=torch.float64, generator=generator).to(theta)
    eps = coarsest_eps(small, theta)
    sharp = eps <= torch.finfo(torch.float64).eps
    kind = torch.float64 if sharp else torch.float32
    for direction in (random,) if sharp else (random, gradient):
        norm = float(direction.norm())
        if norm > 0:
            u = direction / norm
            claimed = float(gradient @ u)
            numeric = _settled(small, theta, u, claimed, eps * max(1.0, abs(loss)), kind)
            if numeric is not None:
                return claimed, numeric
    return None


def _settled(
    risk: EmpiricalRisk, theta: Tensor, u: Tensor, claimed: float, digit: float, kind: torch.dtype
) -> float | None:
    """What central differences along u (n,) settle at if not at what is claimed; none where they settle nowhere.

    Of the steps at which rounding is below the tolerance the shortest counts, where it agrees with the claim, or with
    the next longer one on something else.

    Args:
        risk: The mean loss.
        theta: Where (n,).
        u: Unit vector.
        claimed: Derivative along it.
        digit: Last digit of the loss, of outputs of size 1 also where the loss is small.
        kind: Whose steps and tolerance to take.
    """
    before = None
    for length in (step * float(1 + theta.norm()) for step in _GROWING[kind]):
        numeric = (risk.loss(theta + length * u) - risk.loss(theta - length * u)) / (2 * length)
        if not math.isfinite(numeric):  # at the edge of where the loss is
            return None
        tolerance = _TOLERANCE[kind] * max(abs(claimed), abs(numeric))
        if _ROUNDING * digit / length > tolerance:
            continue
        if abs(claimed - numeric) <= tolerance:
            return None
        if before is not None and abs(before - numeric) <= tolerance:
            return numeric
        before = numeric
    return None


def beside(theta: Tensor) -> Tensor:
    """A point near theta (n,) at which no weight is where it was, zeros least of all."""
    noise = torch.randn(len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(theta)
    return theta + _BESIDE * noise * (theta.abs() + theta.square().mean().sqrt())


def first_rows(tensor: Tensor, size: int) -> Tensor:
    """The first rows of a tensor with one an example; whole where it has others, or cannot be cut, as sparse ones."""
    return tensor[:EXAMPLES] if tensor.shape[:1] == (size,) and tensor.layout is torch.strided else tensor
