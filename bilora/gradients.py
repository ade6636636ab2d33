"""The gradient at the merged weights, which adapters never form, read off backward passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from bilora.adapters import adapted_layers
from landscape.distributed import Ranks

if TYPE_CHECKING:
    from bilora.methods.base import Method

Visit = Callable[[str, Tensor, bool], None]
"""Called with a layer's name, a contribution to its gradient (out, in), and whether the pass holds no other."""


@contextmanager
def merged_gradients(model: nn.Module, visit: Visit) -> Iterator[None]:
    r"""Show :math:`G_j = \nabla_{W_j}L` of every adapted layer while backward passes run inside the block.

    A layer multiplies its inputs x with :math:`W_j`, so that :math:`G_j = \sum_t (\partial L/\partial y_t)\,x_t^\top`
    over all its outputs y, whatever else uses the weight or is made of it: a tied embedding, DoRA's norm. A layer that
    is called several times in a pass contributes once for each. One contribution is held at a time.
    """
    calls: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    recomputes = False

    def watch(name: str, inputs: Tensor, output: Tensor) -> None:
        nonlocal recomputes
        recomputes |= not torch.is_grad_enabled()  # reentrant checkpointing: calls are counted too late
        if output.requires_grad:
            calls[name] += 1
            seen = inputs.detach()
            output.register_hook(lambda gradient: show(name, seen, gradient))

    @torch.no_grad()
    def show(name: str, inputs: Tensor, gradient: Tensor) -> None:
        work = torch.promote_types(torch.promote_types(gradient.dtype, inputs.dtype), torch.float32)
        there, here = (tensor.reshape(-1, tensor.shape[-1]).to(work) for tensor in (gradient, inputs))
        with torch.autocast(gradient.device.type, enabled=False):
            product = there.T @ here
        visit(name, product, calls[name] == 1 and not recomputes)
        shown[name] += 1

    handles = [
        layer.register_forward_hook(lambda _, args, out, name=name: watch(name, args[0], out))
        for name, layer in adapted_layers(model).items()
    ]

    def begin(*_: object) -> None:
        # A loss may call the model several times before its one backward pass.
        if shown == calls:
            calls.clear()
            shown.clear()

    model_handle = model.register_forward_pre_hook(begin)
    try:
        yield
    finally:
        for handle in (*handles, model_handle):
            handle.remove()


class StepGradients:
    """The whole gradient of one optimizer step at the merged weights: all micro-batches, all ranks, no loss scale.

    Memory: one (out, in) matrix in at least float32 for every adapted layer.

    Args:
        method: The method whose passes run while the block is entered; it may be entered once a micro-batch.
        of: Which of the method's passes count: those for the trained weights' gradient (at the perturbed weights, if
            the method perturbs them), or those that look for the perturbation (SAM's first).
    """

    def __init__(self, method: Method, of: Literal["step", "ascent"] = "step") -> None:
        self._method, self._of = method, of
        self._sums: dict[str, Tensor] = {}
        self._watching = ExitStack()

    def __enter__(self) -> StepGradients:
        self._watching.enter_context(merged_gradients(self._method.model, self.add))
        return self

    def __exit__(self, *_error: object) -> None:
        self._watching.close()

    def add(self, name: str, contribution: Tensor, _alone: bool = False) -> None:
        """Add a contribution (out, in) of a layer, if the pass under way counts."""
        if self._method.under_way == self._of:
            self._sums[name] = self._sums[name].add_(contribution) if name in self._sums else contribution

    def of_layers(self) -> dict[str, Tensor]:
        """G (out, in) by layer, in the model's order; layers that no backward pass reached are left out."""
        ranks = Ranks()
        scale = 1 / (self._method.loss_scale * ranks.count)
        layers = adapted_layers(self._method.model)
        if ranks.count > 1:  # all ranks have to sum the same layers, also one whose batch did not use an expert
            for name, layer in layers.items():
                shape, device = (layer.out_features, layer.in_features), layer.get_base_layer().weight.device
                self._sums.setdefault(name, torch.zeros(shape, device=device))
        return {name: ranks.all_sum(self._sums[name]).mul(scale) for name in layers if name in self._sums}
