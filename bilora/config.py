"""Settings of the fine-tuning methods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Clip = Literal["global", "layerwise", "none"]


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

    @property
    def auxiliary_rank(self) -> int:
        """Rank of the auxiliary adapter."""
        return self.auxiliary_r or self.r

    @property
    def auxiliary_lora_alpha(self) -> float:
        """``lora_alpha`` of the auxiliary adapter."""
        return self.auxiliary_alpha or self.alpha * self.auxiliary_rank / self.r
