"""The norm of what an adapter adds to the weights, and bringing it back into a ball, without out×in products."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from bilora.adapters import Factors
from bilora.config import Clip


@torch.no_grad()
def layer_norms(factors: Iterable[Factors]) -> Tensor:
    r"""Per layer :math:`\|sBA\|_F`, from :math:`s^2\operatorname{tr}((B^\top B)(AA^\top))`, (layers,).

    Layers of one shape are computed together; the work is r×r per layer after two thin products.
    """
    groups = defaultdict(list)
    pairs = list(factors)
    for index, pair in enumerate(pairs):
        groups[pair.A.shape, pair.B.shape, pair.scaling].append(index)
    squares: list[Tensor] = [torch.zeros(())] * len(pairs)
    for (_, _, scaling), members in groups.items():
        down = torch.stack([pairs[index].A for index in members])
        up = torch.stack([pairs[index].B for index in members])
        traces = ((up.mT @ up).double() * (down @ down.mT).double()).sum(dim=(1, 2)) * scaling**2
        for index, trace in zip(members, traces.unbind(), strict=True):
            squares[index] = trace
    return torch.stack(squares).clamp_min(0).sqrt()


def adapter_norm(factors: Iterable[Factors]) -> Tensor:
    r"""Norm of what an adapter adds, :math:`c=\sqrt{\sum_j\|s B_jA_j\|_F^2}`."""
    return layer_norms(factors).norm()


@torch.no_grad()
def scale_adapter(factors: Sequence[Factors], scale: Tensor, *, shared: str = "none") -> None:
    """Multiply what an adapter adds by ``scale`` >= 0, a number or one a layer.

    A and B each take the square root; where one of them is ``shared`` with another adapter, the other takes it all.
    """
    root = scale if shared != "none" else scale.sqrt()
    tensors = [pair.A for pair in factors if shared != "A"] + [pair.B for pair in factors if shared != "B"]
    if root.dim() == 0:
        torch._foreach_mul_(tensors, root.to(tensors[0]))
        return
    repeats = len(tensors) // len(factors)
    torch._foreach_mul_(tensors, list(root.to(tensors[0]).unbind()) * repeats)


def clip_adapter(factors: Mapping[str, Factors], rho: float, mode: Clip, *, shared: str = "none") -> Tensor:
    r"""Bring an adapter back into the ball of radius rho.

    ``global``: :math:`c=\sqrt{\sum_j\|sB_jA_j\|^2}`; if c > rho, every A_j and B_j is multiplied by
    :math:`\sqrt{\rho/c}`, so that afterwards c = rho. ``layerwise``: the same for every layer alone, each with
    radius rho/√(number of layers), so that the whole stays within rho. ``none``: nothing.

    Returns:
        What the layers' products were multiplied by: a number, for ``layerwise`` (layers,); 1 where nothing was done.
    """
    pairs = list(factors.values())
    if mode == "none":
        return torch.ones((), device=pairs[0].A.device)
    norms = layer_norms(pairs)
    radius, norm = (rho, norms.norm()) if mode == "global" else (rho / len(pairs) ** 0.5, norms)
    scale = torch.where(norm > radius, radius / norm, torch.ones_like(norm))
    scale_adapter(pairs, scale, shared=shared)
    return scale
