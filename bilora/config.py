"""Settings of the fine-tuning methods."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from peft import LoraConfig
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationInfo, field_validator, model_validator

Clip = Literal["global", "layerwise", "none"]
Primary = Literal["lora", "rslora", "dora", "pissa", "lora_ga", "ia3", "full"]
WITHOUT_FACTORS: tuple[Primary, ...] = ("full", "ia3")
"""Kinds of primary that are no product of factors; all factors are the auxiliary's then."""
RhoSchedule = Literal["constant", "warmup", "cosine", "cooled"]
FILE = "bilora.json"
"""Name of the settings in a folder."""
_COOLED_FROM = 0.8
_Rank = Annotated[int, Field(ge=1)]
_Alpha = Annotated[FiniteFloat, Field(gt=0)]


CLASSIFIERS = ("classifier", "score")
_HEADS = {"SEQ_CLS": CLASSIFIERS, "TOKEN_CLS": CLASSIFIERS, "QUESTION_ANS": ("qa_outputs",)}
"""Parts that PEFT trains as a whole for a task, where the model has them."""


class BiLoraConfig(BaseModel):
    """Adapters, radius and auxiliary step of a method; settings that the method does not use are refused.

    Attributes:
        method: Name in the registry, see `bilora.methods.METHODS`, or the place of a class of your own,
            ``package.module:Class``.
        r: Rank of the primary adapter.
        alpha: ``lora_alpha`` of the primary, a name that is taken too; its scaling s is alpha / r, for ``rslora``
            alpha / √r.
        auxiliary_r: Rank of the auxiliary; default the primary's, layer by layer.
        auxiliary_alpha: ``lora_alpha`` of the auxiliary; default keeps the primary's scaling, layer by layer.
        target_modules: Linear layers to adapt, as PEFT takes them: a list of name endings, one regular expression,
            ``"all-linear"``, or nothing for PEFT's choice for the model's type.
        rho: Radius of the perturbation, in the units of the weights.
        auxiliary_lr: Learning rate of the auxiliary; default the primary's.
        clip: How the auxiliary is brought back to radius rho after each step.
        modules_to_save: Modules trained as a whole beside the primary and saved with it, such as a new head; name
            endings, as in `peft.LoraConfig`. Layers inside them get no adapter.
        primary: What PEFT makes of the primary adapter. ``lora_ga`` needs `peft.tuners.lora.loraga.preprocess_loraga`
            on the model first. ``ia3`` scales the targets' outputs and has no rank; ``r`` is the auxiliary's then.
            ``full`` makes none: what the model trains descends, all its weights or adapters of
            another kind than LoRA that it came with, beside an auxiliary of rank ``r``. The auxiliary is always plain
            LoRA.
        rank_pattern: Ranks of layers that differ from ``r``, as in `peft.LoraConfig`.
        alpha_pattern: ``lora_alpha`` of layers that differ from ``alpha``, as in `peft.LoraConfig`.
        lora_dropout: Dropout on the primary's input; the auxiliary has none.
        rho_schedule: Radius over training: ``constant``; ``warmup`` rises linearly over the first tenth of the steps;
            ``cosine`` falls as ½(1 + cos πt) from rho to 0; ``cooled`` is 0 in the last fifth, so that training comes
            to rest where it is deployed.
        adaptive: ASAM instead of SAM in ``sam``, ``lora_sam`` and ``lora_sam_full``: the ball is measured in units of
            each weight's size (Kwon et al. 2021, arXiv 2102.11600).
        share: Factor that the auxiliary copies from the primary after every step instead of learning its own.
        ascent_fraction: Share of a batch that ``bilora_fresh`` takes its ascent pass on, at least one example.
        inner_steps: Ascent steps of ``bilora_inner`` before each descent.
        match_gradients: Scale the auxiliary's gradient to the norm of the primary's before the optimizer sees it.
            Without it (the default) the modules meet only in the point at which both gradients are taken.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = "bilora"
    r: _Rank = 8
    alpha: _Alpha = 16.0
    auxiliary_r: _Rank | None = None
    auxiliary_alpha: _Alpha | None = None
    target_modules: list[str] | str | None = None
    rho: Annotated[FiniteFloat, Field(ge=0)] = 0.05
    auxiliary_lr: Annotated[FiniteFloat, Field(gt=0)] | None = None
    clip: Clip = "global"
    modules_to_save: list[str] | None = None
    primary: Primary = "lora"
    rank_pattern: dict[str, _Rank] = Field(default_factory=dict)
    alpha_pattern: dict[str, _Alpha] = Field(default_factory=dict)
    lora_dropout: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.0
    rho_schedule: RhoSchedule = "constant"
    adaptive: bool = False
    share: Literal["none", "A", "B"] = "none"
    match_gradients: bool = False
    ascent_fraction: Annotated[FiniteFloat, Field(gt=0, le=1)] = 0.25
    inner_steps: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="before")
    @classmethod
    def _by_pefts_name(cls, given: Any) -> Any:
        """PEFT's ``lora_alpha`` is ``alpha``."""
        if not isinstance(given, dict) or "lora_alpha" not in given:
            return given
        named = dict(given)
        value = named.pop("lora_alpha")
        if named.setdefault("alpha", value) != value:
            raise ValueError(
                f"lora_alpha: another name of alpha, got lora_alpha={value!r} and alpha={named['alpha']!r}; give one"
            )
        return named

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_no_truth_values(cls, given: Any) -> Any:
        """Python counts True as 1."""
        flags = ("adaptive", "match_gradients")
        wrong = (
            [key for key, value in given.items() if isinstance(value, bool) and key not in flags]
            if isinstance(given, dict)
            else []
        )
        if wrong:
            raise ValueError(f"{wrong[0]}: expected no truth value, got {given[wrong[0]]}")
        return given

    @field_validator("target_modules", "modules_to_save", mode="before")
    @classmethod
    def _in_an_order(cls, value: Any) -> Any:
        """PEFT takes sets of names, whose order Python draws anew in every process."""
        return sorted(value) if isinstance(value, set | frozenset) else value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _of_expressions(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"{info.field_name}: {pattern!r} is no regular expression ({error}); expected the end of a layer's "
                    "name, or an expression for it"
                ) from None
        return value

    @field_validator("target_modules")
    @classmethod
    def _is_an_expression(cls, value: list[str] | str | None) -> list[str] | str | None:
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(
                    f"target_modules: {value!r} is no regular expression ({error}); write '.*proj' for all names that "
                    "end in proj, or a list of name endings"
                ) from None
        return value

    @model_validator(mode="after")
    def _shared_factor_fits(self) -> BiLoraConfig:
        other = self.auxiliary_r is not None and {self.r, *self.rank_pattern.values()} != {self.auxiliary_r}
        if self.share != "none" and other:
            ranks = f"r={self.r} and auxiliary_r={self.auxiliary_r}" + ", rank_pattern" * bool(self.rank_pattern)
            raise ValueError(f"share: a shared factor needs one rank, got {ranks}; leave auxiliary_r out")
        return self

    @model_validator(mode="after")
    def _without_factors_of_its_own(self) -> BiLoraConfig:
        names = ["share", "rank_pattern", "alpha_pattern", "lora_dropout"] + ["modules_to_save"] * (
            self.primary == "full"
        )
        given = {name: getattr(self, name) for name in names if getattr(self, name) not in ("none", None, {}, 0.0)}
        if self.primary in WITHOUT_FACTORS and given:
            what = "trains all weights and has" if self.primary == "full" else "scales outputs and has"
            raise ValueError(
                f"primary: {self.primary} {what} no primary adapter to which {', '.join(given)} could apply, got "
                + ", ".join(f"{name}={value!r}" for name, value in given.items())
                + "; leave them out"
            )
        return self

    @classmethod
    def from_lora(cls, lora: LoraConfig, **settings: Any) -> BiLoraConfig:
        """Settings whose primary adapter is the one that a PEFT configuration describes.

        Args:
            lora: PEFT's configuration.
            **settings: The other settings: ``method``, ``rho``, ``auxiliary_lr``, …

        Raises:
            ValueError: The configuration uses an option of PEFT's that the methods here do not have.

        >>> BiLoraConfig.from_lora(LoraConfig(r=4, lora_alpha=8, use_rslora=True), rho=0.1).primary
        'rslora'
        """
        given = lora.to_dict()
        plain = LoraConfig().to_dict()
        kinds = {
            "rslora": given.pop("use_rslora"),
            "dora": given.pop("use_dora"),
            "pissa": given["init_lora_weights"] == "pissa",
            "lora_ga": given["init_lora_weights"] == "lora_ga",
        }
        chosen = [kind for kind, wanted in kinds.items() if wanted] or ["lora"]
        if any(kinds[kind] for kind in ("pissa", "lora_ga")):
            given.pop("init_lora_weights")
        given.pop("lora_ga_config", None)
        taken = {
            "r": given.pop("r"),
            "alpha": given.pop("lora_alpha"),
            **{name: given.pop(name) for name in ("modules_to_save", "rank_pattern", "alpha_pattern", "lora_dropout")},
        }
        targets = given.pop("target_modules")
        heads = _HEADS.get(str(getattr(given["task_type"], "value", given["task_type"])), ())
        trained = [*(taken["modules_to_save"] or []), *(settings.get("modules_to_save") or [])]
        if heads and not set(heads) & set(trained):
            raise ValueError(
                f"lora: PEFT trains the head of a model for its task_type, {' or '.join(heads)}, beside the adapter; "
                f"expected its name here, got none: say modules_to_save=[{heads[0]!r}]"
            )
        metadata = ("task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_type", "auto_mapping")
        for name in metadata:
            given.pop(name, None)
        other = sorted(name for name, value in given.items() if value != plain.get(name))
        if len(chosen) > 1 or other:
            raise ValueError(
                f"lora: expected a LoRA of one of the kinds {', '.join(['lora', *kinds])} without further options; got "
                f"{', '.join(other) if other else ' with '.join(chosen)}"
            )
        named = targets if isinstance(targets, str) or targets is None else sorted(targets)
        taken = {name: value for name, value in taken.items() if value is not None and value not in ([], {})}
        return cls.model_validate({"primary": chosen[0], "target_modules": named} | taken | settings)

    @classmethod
    def from_yaml(cls, path: str | Path) -> BiLoraConfig:
        """Settings from a YAML file, read safely.

        Raises:
            ValueError: It holds no mapping, or a setting is unknown or out of range.
        """
        given = yaml.safe_load(Path(path).read_text())
        if not isinstance(given, dict):
            raise ValueError(f"path: expected settings and values in {path}, got {type(given).__name__}")
        return cls.model_validate(given)

    def to_yaml(self, path: str | Path) -> None:
        """Write the settings that are not the defaults, and the method, as YAML."""
        text = yaml.safe_dump({"method": self.method, **self.model_dump(exclude_defaults=True)}, sort_keys=False)
        Path(path).write_text(text)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> BiLoraConfig:
        """Settings from a folder that `save_pretrained`, a checkpoint or ``trainer.save_model`` wrote.

        Raises:
            FileNotFoundError: It holds none.
        """
        path = Path(directory) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"directory: {directory} holds no {FILE}")
        stored = cls.model_validate_json(path.read_text())
        # The file holds all settings, also those that the method would refuse if somebody asked for them.
        return cls.model_validate({"method": stored.method, **stored.model_dump(exclude_defaults=True)})

    def save_pretrained(self, directory: str | Path) -> None:
        """Write all settings as ``bilora.json`` into a folder."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / FILE).write_text(self.model_dump_json(indent=2) + "\n")

    def rho_at(self, progress: float) -> float:
        """Radius when the share ``progress`` of the training steps is done.

        >>> BiLoraConfig(rho=0.2, rho_schedule="cosine").rho_at(0.5)
        0.1
        """
        if self.rho_schedule == "warmup":
            return self.rho * min(1.0, 10 * progress)
        if self.rho_schedule == "cosine":
            return self.rho * 0.5 * (1 + math.cos(math.pi * progress))
        if self.rho_schedule == "cooled" and progress >= _COOLED_FROM:
            return 0.0
        return self.rho
