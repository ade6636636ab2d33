"""Settings of the fine-tuning methods."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Clip = Literal["global", "layerwise", "none"]
Primary = Literal["lora", "rslora", "dora", "pissa", "lora_ga"]
RhoSchedule = Literal["constant", "warmup", "cosine"]


class BiLoraConfig(BaseModel):
    """Adapters, radius and auxiliary step of a method; what a method does not have, it ignores.

    Attributes:
        method: Name in the registry; see `bilora.methods.METHODS`.
        r: Rank of the primary adapter.
        alpha: ``lora_alpha`` of the primary; its scaling is alpha / r.
        auxiliary_r: Rank of the auxiliary; default r.
        auxiliary_alpha: ``lora_alpha`` of the auxiliary; default keeps the primary's scaling.
        target_modules: Linear layers to adapt: a list of name endings or one regular expression, as PEFT takes them.
        rho: Radius of the perturbation, in the units of the weights.
        auxiliary_lr: Learning rate of the auxiliary; default the primary's.
        clip: How the auxiliary is brought back to radius rho after each step.
        modules_to_save: Modules trained as a whole beside the primary and saved with it, such as a new head; name
            endings, as in `peft.LoraConfig`.
        primary: What PEFT makes of the primary adapter. ``lora_ga`` needs `peft.tuners.lora.loraga.preprocess_loraga`
            on the model first. The auxiliary is always plain LoRA.
        rho_schedule: Radius over training: ``constant``; ``warmup`` rises linearly over the first tenth of the steps;
            ``cosine`` falls as ½(1 + cos πt) from rho to 0.
        adaptive: ASAM instead of SAM in ``sam``, ``lora_sam`` and ``lora_sam_full``: the ball is measured in units of
            each weight's size (Kwon et al. 2021, arXiv 2102.11600).
        share: Factor that the auxiliary copies from the primary after every step instead of learning its own.
        match_gradients: Scale the auxiliary's gradient to the norm of the primary's before the optimizer sees it.
            Without it (the default) the modules meet only in the point at which both gradients are taken.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = "bilora"
    r: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[FiniteFloat, Field(gt=0)] = 16.0
    auxiliary_r: Annotated[int, Field(ge=1)] | None = None
    auxiliary_alpha: Annotated[FiniteFloat, Field(gt=0)] | None = None
    target_modules: list[str] | str | None = None
    rho: Annotated[FiniteFloat, Field(ge=0)] = 0.05
    auxiliary_lr: Annotated[FiniteFloat, Field(gt=0)] | None = None
    clip: Clip = "global"
    modules_to_save: list[str] | None = None
    primary: Primary = "lora"
    rho_schedule: RhoSchedule = "constant"
    adaptive: bool = False
    share: Literal["none", "A", "B"] = "none"
    match_gradients: bool = False

    @model_validator(mode="after")
    def _shared_factor_fits(self) -> BiLoraConfig:
        if self.share != "none" and self.auxiliary_rank != self.r:
            raise ValueError(
                f"share: a shared factor needs one rank, got r={self.r} and auxiliary_r={self.auxiliary_rank}; "
                "leave auxiliary_r out"
            )
        return self

    def rho_at(self, progress: float) -> float:
        """Radius when the share ``progress`` of the training steps is done.

        >>> BiLoraConfig(rho=0.2, rho_schedule="cosine").rho_at(0.5)
        0.1
        """
        if self.rho_schedule == "warmup":
            return self.rho * min(1.0, 10 * progress)
        if self.rho_schedule == "cosine":
            return self.rho * 0.5 * (1 + math.cos(math.pi * progress))
        return self.rho

    @property
    def auxiliary_rank(self) -> int:
        """Rank of the auxiliary adapter."""
        return self.auxiliary_r or self.r

    @property
    def auxiliary_lora_alpha(self) -> float:
        """``lora_alpha`` of the auxiliary adapter."""
        return self.auxiliary_alpha or self.alpha * self.auxiliary_rank / self.r
