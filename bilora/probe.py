"""The gradient at the merged weights, which adapters never form, read off a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bilora.adapters import adapted_layers
from bilora.clipping import adapter_norm
from bilora.methods.bilora import BiLora

Visit = Callable[[str, Tensor], None]
"""Called with a layer's name and its gradient G (out, in), once in every backward pass."""


@contextmanager
def merged_gradients(model: nn.Module, visit: Visit) -> Iterator[None]:
    r"""Show :math:`G_j = \nabla_{W_j}L` of every adapted layer while backward passes run inside the block.

    The adapters add to the frozen weight, so its gradient is the merged weight's. One layer's gradient is held at a
    time and dropped after the visit.
    """
    weights = {name: layer.get_base_layer().weight for name, layer in adapted_layers(model).items()}

    def show(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        visit(name, weight.grad)
        weight.grad = None

    handles = []
    for name, weight in weights.items():
        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(lambda w, name=name: show(name, w)))
    try:
        yield
    finally:
        for handle, weight in zip(handles, weights.values(), strict=True):
            handle.remove()
            weight.requires_grad_(False)
            weight.grad = None


class AscentProbe:
    """How the auxiliary lies to the gradient, measured while a backward pass runs inside the block.

    Gradients are those of the last backward pass in it, with the loss as it was scaled there.
    """

    def __init__(self, method: BiLora) -> None:
        self._method = method
        self._inner: dict[str, Tensor] = {}
        self._squared: dict[str, Tensor] = {}

    def __enter__(self) -> AscentProbe:
        self._block = merged_gradients(self._method.model, self._visit)
        self._block.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._block.__exit__(*error)

    @torch.no_grad()
    def _visit(self, name: str, gradient: Tensor) -> None:
        pair = self._method.auxiliary[name]
        self._inner[name] = pair.scaling * (pair.B * (gradient @ pair.A.T.to(gradient))).double().sum()
        self._squared[name] = gradient.double().square().sum()

    def metrics(self) -> dict[str, float]:
        """First-order gain ⟨G, ε⟩ (nats) and cos(ε, G) over all adapted layers; 0 for a zero auxiliary."""
        gain = float(torch.stack(list(self._inner.values())).sum())
        norms = float(torch.stack(list(self._squared.values())).sum().sqrt()) * float(
            adapter_norm(self._method.auxiliary.values())
        )
        return {"ascent_gain": gain, "cos_auxiliary_gradient": gain / norms if norms > 0 else 0.0}
