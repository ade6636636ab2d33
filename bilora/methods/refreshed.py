"""Bi-LoRA whose auxiliary is not learned but set: to the gradient's best low-rank part, by subspace iteration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bilora.clipping import adapter_norm
from bilora.methods.base import ADAPTER, BALL, Backward, Method
from bilora.methods.bilora import BiLora
from bilora.refreshing import refresh, start
from landscape.distributed import Ranks


class RefreshedAuxiliary(BiLora):
    """What the two have in common: the auxiliary's gradients are read and used up, no optimizer moves it."""

    uses: ClassVar[frozenset[str]] = ADAPTER | BALL | {"auxiliary_r"}

    def prepare(self, model: nn.Module) -> nn.Module:
        prepared = super().prepare(model)
        start(self.auxiliary.values())
        return prepared

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        return []

    def parameter_groups(self, learning_rate: float | None = None) -> list[dict[str, Any]]:
        return Method.parameter_groups(self, learning_rate)

    def before_step(self) -> None:
        """Nothing: the auxiliary is set after the step."""

    def forget_gradients(self) -> None:
        for pair in self.auxiliary.values():
            pair.A.grad = pair.B.grad = None

    def metrics(self) -> dict[str, float]:
        return {"auxiliary_norm": float(adapter_norm(self.auxiliary.values()))}


class BiLoraStale(RefreshedAuxiliary):
    r"""The auxiliary is the last step's gradient, projected on the space that the step before left; one pass.

    A step's pass at :math:`W=W^0+s_1B_1A_1+s_2B_2A_2` gives, beside the primary's gradient,
    :math:`\nabla_{B_2}L=s_2GA_2^\top` and :math:`\nabla_{A_2}L=s_2B_2^\top G`. In turn, the next step's perturbation is

    .. math:: s_2B_2A_2 = c\,GA_2^\top A_2 \quad\text{or}\quad c\,B_2B_2^\top G,\qquad \|s_2B_2A_2\|=\rho

    over all layers, with the other factor's space orthonormal; `bilora.refreshing.refresh` has the details. The
    auxiliary so follows the top r singular directions of G while training moves it. The perturbation is one step old,
    as in Momentum-SAM (arXiv 2401.12033), and of rank r; the first step of a fresh model has none. Under accumulation
    and on several ranks G is the step's mean gradient. A step that fp16's scaler skips changes neither factor.
    """

    name = "bilora_stale"
    summary = "auxiliary set to the last step's gradient by subspace iteration"

    _learned: Literal["A", "B"] = "B"
    """The factor that is learned next; the other one's space is orthonormal."""

    def after_step(self) -> None:
        Method.after_step(self)
        refresh(self.auxiliary.values(), self._learned, self.rho)
        self._learned = "A" if self._learned == "B" else "B"

    def state(self) -> dict[str, float]:
        return super().state() | {"learns_a": float(self._learned == "A")}

    def load_state(self, state: Mapping[str, float]) -> None:
        super().load_state(state)
        self._learned = "A" if state.get("learns_a") else "B"


class BiLoraFresh(RefreshedAuxiliary):
    r"""The auxiliary is the gradient of a part of the step's own batch, projected on the last step's row space.

    1. Ascent pass on the first ``ascent_fraction`` of the batch, with :math:`B_2=0`: from its gradient,
       :math:`s_2B_2A_2 = c\,G_{part}A_2^\top A_2`, of norm rho over all layers.
    2. The step's pass on the whole batch at the perturbed weights gives the primary its gradient and, for nothing,
       :math:`\nabla_{A_2}L=s_2B_2^\top G` with B2's columns orthonormal, whose row space the next step uses: one step
       of subspace iteration.

    The ascent pass differentiates with respect to B2 alone. Its part of the batch is as in ESAM (arXiv 2110.03141) and
    m-sharpness (arXiv 2206.06232). Under accumulation it is a part of the step's first micro-batch, and all
    micro-batches are taken at the one point it gives; on several ranks every rank gives a part of its own. Both passes
    draw the same dropout masks as far as their shapes agree, and buffers keep what the whole batch left in them.
    """

    name = "bilora_fresh"
    summary = "auxiliary set to the gradient of a part of the batch (ascent_fraction) by subspace iteration"
    uses: ClassVar[frozenset[str]] = RefreshedAuxiliary.uses | {"ascent_fraction"}
    passes_per_step = 1.25

    def prepare(self, model: nn.Module) -> nn.Module:
        self.passes_per_step = 1 + self.config.ascent_fraction
        self._rows: list[Tensor] = []
        return super().prepare(model)

    def begin_step(self) -> None:
        self._has_ascended = False

    def gradient(self, backward: Backward) -> Tensor:
        if self.config.rho > 0 and not self._has_ascended:
            self._ascend(backward)
            self._has_ascended = True
        return backward()

    def _ascend(self, backward: Backward) -> None:
        pairs = list(self.auxiliary.values())
        columns: list[Tensor] = [pair.B for pair in pairs]
        with torch.no_grad():
            for pair, rows in zip(pairs, self._rows, strict=False):  # a step was given up, or skipped for an overflow
                pair.A.copy_(rows)
            self._rows = [pair.A.detach().clone() for pair in pairs]
            before = [column.clone() for column in columns]
            torch._foreach_zero_(columns)
        with self._only(columns):
            of = self._gradients_of_a_part(backward)
        for column in columns:
            # A wrapper that has averaged already does no harm: the perturbation has no scale.
            column.grad = Ranks().all_sum(of[id(column)])
        refresh(pairs, "B", self.rho, spare=before)

    def _gradients_of_a_part(self, backward: Backward) -> dict[int, Tensor]:
        try:
            return self.ascent_gradients(self._partial(backward))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"ascent_fraction: batch normalisation needs more examples than the part that {self.name} ascends on, "
                f"{self.config.ascent_fraction:g} of a batch; use a larger one, or larger batches"
            ) from error

    def _partial(self, backward: Backward) -> Callable[[], Tensor]:
        fraction = self.config.ascent_fraction
        if fraction == 1:
            return backward
        try:
            inspect.signature(backward).bind(fraction)
        except TypeError:
            raise ValueError(
                f"backward: {self.name} runs it on a part of the batch; expected a function of the fraction, such as "
                "backward(fraction=1.0) with bilora.parts.first_examples(batch, fraction), got one without arguments; "
                "or set ascent_fraction=1"
            ) from None
        return lambda: backward(fraction)

    @contextmanager
    def _only(self, columns: list[Tensor]) -> Iterator[None]:
        """Differentiate with respect to nothing else; not on several ranks, whose wrapper waits for all gradients."""
        wanted = {id(column) for column in columns}
        others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in wanted]
        if Ranks().count > 1:
            others = []
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def after_step(self) -> None:
        Method.after_step(self)
        refresh(self.auxiliary.values(), "A", self.rho)
        self._rows = []
