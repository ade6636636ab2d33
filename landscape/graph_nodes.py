"""What autograd's graph of a loss says of how the loss is computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import Node

from landscape.batches import to_device

if TYPE_CHECKING:
    from landscape.risk import EmpiricalRisk


def nodes_of(total: Tensor) -> set[Node]:
    """All operations of a tensor's graph."""
    seen: set[Node] = set()
    waiting = [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [after for after, _ in node.next_functions]
    return seen


def coarser(nodes: Iterable[Node], dtype: torch.dtype) -> tuple[Node, torch.dtype] | None:
    """An operation that computes in fewer digits than dtype, the coarsest, and in which."""
    found = None
    eps = torch.finfo(dtype).eps
    for node in nodes:
        for made in getattr(node, "_input_metadata", ()):
            if made.dtype.is_floating_point and torch.finfo(made.dtype).eps > eps:
                found, eps = (node, made.dtype), torch.finfo(made.dtype).eps
    return found


def coarsest_eps(risk: EmpiricalRisk, theta: Tensor) -> float:
    """Rounding of the coarsest operation of the first batch's loss at theta (n,)."""
    with torch.enable_grad():
        losses = risk.batch_losses(to_device(risk.batches[0], risk.device), risk.layout.leaves(theta), order=1)
    found = coarser(nodes_of(losses.sum()), risk.dtype)
    return torch.finfo(risk.dtype if found is None else found[1]).eps
