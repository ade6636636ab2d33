"""Options of the set auxiliaries that were looked at and not kept, as methods of a study.

``landscape audit --config benchmarks/auxiliary_options.yaml --out results/options`` in this checkout trains them beside
`bilora_fresh` and `bilora_stale` on `digits` and judges each against the method that it changes; docs/ladder.md has
what came out. Radii that change over training (``rho_schedule``) are settings and need nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilora.methods.base import Backward, Method
from bilora.methods.refreshed import BiLoraFresh, BiLoraStale

_DECAY = 0.9


class FreshAveraged(BiLoraFresh):
    """The perturbation follows an average of the parts' gradients, decaying by 0.9 a step, on the present rows."""

    name = "fresh_averaged"
    summary = "bilora_fresh along an average of gradients"

    def prepare(self, model: nn.Module) -> nn.Module:
        self._average: list[tuple[Tensor, Tensor]] = []
        return super().prepare(model)

    @torch.no_grad()
    def _gradients_of_a_part(self, backward: Backward) -> dict[int, Tensor]:
        with torch.enable_grad():
            found = super()._gradients_of_a_part(backward)
        pairs = list(self.auxiliary.values())
        for pair, (slope, rows) in zip(pairs, self._average, strict=False):
            found[id(pair.B)] = found[id(pair.B)] + _DECAY * slope @ (rows @ pair.A.T)
        self._average = [(found[id(pair.B)].clone(), pair.A.detach().clone()) for pair in pairs]
        return found


class FreshHardest(BiLoraFresh):
    """The ascent takes the share of the batch whose losses are largest, in place of the first; one pass on all."""

    name = "fresh_hardest"
    summary = "bilora_fresh on the hardest examples"

    def prepare(self, model: nn.Module) -> nn.Module:
        prepared = super().prepare(model)
        self.passes_per_step = 2  # the ascent's forward pass sees the whole batch
        return prepared

    def _partial(self, backward: Backward) -> Callable[[], Tensor]:
        def on_the_hardest(_model: nn.Module, _args: Any, given: dict[str, Any], output: Any) -> Any:
            losses = F.cross_entropy(output.logits, given["labels"], reduction="none")
            output["loss"] = losses.topk(max(1, round(self.config.ascent_fraction * len(losses)))).values.mean()
            return output

        def run() -> Tensor:
            handle = self.model.register_forward_hook(on_the_hardest, with_kwargs=True)
            try:
                return backward()
            finally:
                handle.remove()

        return run


class FreshLayerwise(BiLoraFresh):
    """Every layer's perturbation has norm rho/√layers, in place of one scale for all."""

    name = "fresh_layerwise"
    summary = "bilora_fresh with one radius for every layer"

    def _ascend(self, backward: Backward) -> None:
        super()._ascend(backward)
        pairs = list(self.auxiliary.values())
        with torch.no_grad():
            for pair in pairs:
                norm = pair.squared_norm.sqrt()
                pair.A.mul_(torch.where(norm > 0, self.rho / len(pairs) ** 0.5 / norm, 0.0))


class StaleBoth(BiLoraStale):
    r"""Both factors from one gradient: :math:`(GA^\top)(B^\top GA^\top)^+(B^\top G)`, a Nyström approximation of it."""

    name = "stale_both"
    summary = "bilora_stale with both factors refreshed in one step"

    @torch.no_grad()
    def after_step(self) -> None:
        pairs = list(self.auxiliary.values())
        if any(pair.B.grad is None or pair.A.grad is None or not bool(pair.B.any()) for pair in pairs):
            super().after_step()  # the first step: one factor is still zero
            return
        Method.after_step(self)
        parts = []
        for pair in pairs:
            left, right = (factor.grad.double() / pair.scaling for factor in (pair.B, pair.A))
            q, upper = torch.linalg.qr(left)
            p, lower = torch.linalg.qr(right.T)
            core = torch.linalg.pinv(pair.B.double().T @ left, rtol=1e-6)
            u, values, vt = torch.linalg.svd(upper @ core @ lower.T)
            parts.append((pair, q @ u, values, vt @ p.T))
        norm = torch.stack([values.square().sum() for _, _, values, _ in parts]).sum().sqrt()
        for pair, columns, values, rows in parts:
            pair.B.copy_(columns)
            pair.A.copy_(self.rho / norm / pair.scaling * values[:, None] * rows)
            pair.A.grad = pair.B.grad = None
