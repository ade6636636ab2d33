"""How the auxiliary lies to the gradient at one step, for the log."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from bilora.clipping import adapter_norm
from bilora.gradients import StepGradients, merged_gradients
from bilora.methods.bilora import BiLora
from landscape.distributed import Ranks


class AscentProbe:
    r"""How the auxiliary lies to the gradient of one optimizer step: ⟨G, ε⟩ and cos(ε, G) over all adapted layers.

    Memory: one layer's gradient at a time where that is its whole gradient; else, under accumulation, on several ranks
    and for layers called more than once, all layers' as in `StepGradients`.

    Args:
        method: The method with the auxiliary.
        num_passes: Micro-batches of the step.
    """

    def __init__(self, method: BiLora, *, num_passes: int = 1) -> None:
        self._method = method
        self._whole = StepGradients(method)
        self._streams = num_passes == 1 and Ranks().count == 1
        self._inner: dict[str, Tensor] = {}
        self._squared: dict[str, Tensor] = {}
        self._in_parts = False
        self._watching = ExitStack()

    def __enter__(self) -> AscentProbe:
        self._watching.enter_context(merged_gradients(self._method.model, self._visit))
        return self

    def __exit__(self, *_error: object) -> None:
        self._watching.close()

    def _visit(self, name: str, contribution: Tensor, alone: bool) -> None:
        if self._method.under_way != "step":
            return
        if self._streams and alone:
            self._measure(name, contribution / self._method.loss_scale)
        else:
            self._whole.add(name, contribution)

    @torch.no_grad()
    def _measure(self, name: str, gradient: Tensor) -> None:
        pair = self._method.auxiliary[name]
        inner = pair.scaling * (pair.B * (gradient @ pair.A.T.to(gradient))).double().sum()
        self._in_parts |= name in self._inner
        self._inner[name] = inner + self._inner.get(name, 0.0)
        self._squared[name] = gradient.double().square().sum()

    def metrics(self) -> dict[str, float]:
        """First-order gain ⟨G, ε⟩ (nats) and cos(ε, G); 0 for a zero auxiliary.

        A step of several backward passes of its own has no cosine: of G as a whole, only the gain was kept.
        """
        for name, gradient in self._whole.of_layers().items():
            self._measure(name, gradient)
        if not self._inner:
            raise RuntimeError("the probe saw no backward pass through an adapted layer")
        gain = float(torch.stack(list(self._inner.values())).sum())
        if self._in_parts:
            return {"ascent_gain": gain}
        norms = float(torch.stack(list(self._squared.values())).sum().sqrt()) * float(
            adapter_norm(self._method.auxiliary.values())
        )
        return {"ascent_gain": gain, "cos_auxiliary_gradient": gain / norms if norms > 0 else 0.0}
