"""Add a perturbation to weights for the length of a block, then put back the very bits that were there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def perturbed(parameters: Sequence[Tensor], epsilons: Sequence[Tensor]) -> Iterator[None]:
    r"""Hold ``parameters`` at :math:`\theta + \epsilon` inside the block.

    The weights are restored from copies, not by subtraction, so they are bitwise what they were, also when
    the block raises. Gradients computed inside the block stay in ``.grad``. Copies of other weights that an autocast
    around the block keeps are forgotten, or a pass inside it would run at these.

    Args:
        parameters: Tensors changed in place.
        epsilons: One perturbation per tensor, of the same shape.

    >>> w = torch.ones(2)
    >>> with perturbed([w], [torch.full((2,), 0.1)]):
    ...     print(w)
    tensor([1.1000, 1.1000])
    >>> w
    tensor([1., 1.])
    """
    with torch.no_grad():
        saved = [p.detach().clone() for p in parameters]
        try:
            for p, epsilon in zip(parameters, epsilons, strict=True):
                p.add_(epsilon.to(p.dtype))
            torch.clear_autocast_cache()
            with torch.enable_grad():
                yield
        finally:
            for p, original in zip(parameters, saved, strict=True):
                p.copy_(original)
            torch.clear_autocast_cache()
