"""How the auxiliary moves against the gradient, step by step: what the paper's propositions speak of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bilora.adapters import PRIMARY, adapter_factors
from bilora.clipping import adapter_norm
from bilora.gradients import StepGradients
from bilora.methods.base import Method
from bilora.methods.bilora import BiLora
from bilora.methods.sam import LoraSam, LoraSamFull
from landscape import factor_perturbation, first_order_optimum


class DynamicsRecorder(TrainerCallback):
    r"""Note, every ``every`` steps, how a step's perturbation relates to the gradient G at the merged weights.

    G is taken where the step takes its gradient, at W⁰ + s₁B₁A₁ + ε, for LoRA-SAM on the factors before its
    perturbation; over all micro-batches of the step, and without the scale of fp16's loss.

    With an auxiliary (Bi-LoRA, arXiv 2508.19564, propositions 2 and 3):

    - ``ascent``, ``ascent_before_clip``: :math:`\langle G, \epsilon_{t+1}-\epsilon_t\rangle` after and before the clip;
    - ``gain``: :math:`\langle G, \epsilon_t\rangle`, ``cosine``, ``gradient_norm``, ``auxiliary_norm``;
    - ``gain_optimum``, ``gain_ky_fan``: the largest first-order gain that a perturbation of the auxiliary's rank has on
      the Frobenius ball of radius rho, :math:`\rho(\sum_j\sum_{i\le r}\sigma_{ji}^2)^{1/2}`, and the sum of Ky Fan
      norms that the paper states, :math:`\rho\sum_j\sum_{i\le r}\sigma_{ji}`.

    For full-space SAM and its rungs: ``gain``, ``cosine``, ``gradient_norm``, and the perturbation's norm as
    ``auxiliary_norm``; under accumulation the last micro-batch's perturbation.

    For LoRA-SAM (proposition 1): ``formula_error``, the relative error of :math:`c(BB^\top G + GA^\top A)` as the
    effective perturbation of the weights, and ``formula_share``, the share of the exact perturbation's squared norm
    inside the tangent space of the factors.

    Args:
        method: The trainer's method; those without a perturbation of the merged weights, and ASAM on factors, leave no
            rows.
        every: Steps between notes; the first step is noted.

    Attributes:
        rows: One dictionary a noted step, with ``step`` from 1.
    """

    def __init__(self, method: Method, *, every: int) -> None:
        if every < 1:
            raise ValueError(f"every: expected at least 1 step, got {every}")
        self._method, self._every = method, every
        self._on_factors = type(method) is LoraSam
        self._noted = isinstance(method, BiLora | LoraSamFull) or (self._on_factors and not method.config.adaptive)
        self._gradients: dict[str, Tensor] = {}
        self._step: StepGradients | None = None
        self.rows: list[dict[str, float]] = []

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._noted and state.global_step % self._every == 0:
            self._step = StepGradients(self._method, "ascent" if self._on_factors else "step").__enter__()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._step is not None:
            self._step.__exit__()
            self._gradients, self._step = self._step.of_layers(), None
            relations = self._first_proposition() if self._on_factors else self._gain()
            self.rows.append({"step": state.global_step + 1, **relations})

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._gradients and isinstance(self._method, BiLora):
            gain, moved = self.rows[-1]["gain"], self._inner_products()
            clipped = self._method.clip_scale.to(moved)
            self.rows[-1] |= {
                "ascent": float(moved.sum()) - gain,
                "ascent_before_clip": float((moved / clipped).sum()) - gain,
            }
        self._gradients = {}

    @torch.no_grad()
    def _inner_products(self) -> Tensor:
        """⟨G_j, epsilon_j⟩ by layer, (layers,); of an auxiliary without out×in products."""
        if isinstance(self._method, LoraSamFull):
            moved = self._method.perturbation
            return torch.stack([(g * moved[name]).double().sum() for name, g in self._gradients.items()])
        assert isinstance(self._method, BiLora)
        return torch.stack(
            [
                pair.scaling * (pair.B * (self._gradients[name] @ pair.A.T.to(self._gradients[name]))).double().sum()
                for name, pair in self._method.auxiliary.items()
            ]
        )

    def _gain(self) -> dict[str, float]:
        gain, norm = float(self._inner_products().sum()), _norm(self._gradients.values())
        moved = self._perturbation_norm()
        relations = {
            "gain": gain,
            "cosine": gain / (norm * moved) if norm * moved > 0 else 0.0,
            "gradient_norm": norm,
            "auxiliary_norm": moved,
        }
        if isinstance(self._method, BiLora):
            ranks = {name: pair.A.shape[0] for name, pair in self._method.auxiliary.items()}
            best = first_order_optimum(self._gradients, ranks, self._method.rho)
            relations |= {"gain_optimum": best.frobenius, "gain_ky_fan": best.ky_fan}
        return relations

    def _perturbation_norm(self) -> float:
        if isinstance(self._method, LoraSamFull):
            return _norm(self._method.perturbation.values())
        assert isinstance(self._method, BiLora)
        return float(adapter_norm(self._method.auxiliary.values()))

    def _first_proposition(self) -> dict[str, float]:
        factors = adapter_factors(self._method.model, PRIMARY)
        gradients = {name: self._gradients[name] for name in factors}
        found = factor_perturbation(gradients, factors, self._method.rho)
        return {"formula_error": found.relative_error, "formula_share": found.tangent_share}


def _norm(blocks: Iterable[Tensor]) -> float:
    return float(torch.stack([block.double().square().sum() for block in blocks]).sum().sqrt())
