"""A study: its settings, the cells it consists of, and the names that follow from them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from analyses.study.base import Count, Positive, Settings, near
from analyses.study.cells import Cell
from analyses.study.claim_settings import ClaimSettings
from analyses.study.measure_settings import MeasureSettings
from analyses.study.optimizer_settings import OptimizerSettings
from analyses.study.task_settings import TaskSettings
from bilora import METHODS
from bilora.config import Clip, Primary, RhoSchedule

Schedule = Literal["linear", "constant", "cosine"]


class TrainingSettings(Settings):
    """Schedule shared by all methods: by default AdamW, linear decay after a linear warm-up, no weight decay.

    ``max_steps`` overrides ``epochs``, so that training sets of different sizes get the same number of steps.
    ``schedule`` is what the learning rate does after the warm-up. Weight decay moves matrices alone, no biases and
    norms, and no auxiliary.
    """

    epochs: Count = 60
    batch_size: Count = 25
    warmup_ratio: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.1
    max_steps: Count | None = None
    optimizer: OptimizerSettings | None = None
    schedule: Schedule | None = None
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] | None = None

    def num_steps(self, train_size: int) -> int:
        """Optimizer steps of one training."""
        return self.max_steps or self.epochs * math.ceil(train_size / self.batch_size)


class AdapterSettings(Settings):
    """Adapters shared by all methods; the adapted layers' merged weights are the measured space.

    ``modules_to_save`` are trained as a whole beside the adapters, a new head say.
    """

    r: Count = 4
    alpha: Positive = 8.0
    target_modules: list[str] | str
    modules_to_save: list[str] | None = None


class MethodSettings(Settings):
    """One column of a study: a method with what is tuned for it, and what sets a variant apart.

    ``method`` is the registry's name where the column has another one, or the place of a class of one's own,
    ``package.module:Class``. ``r`` overrides the study's rank and keeps its scaling. The others are as in
    `bilora.BiLoraConfig`. ``optimizer``, ``batch_size`` and ``weight_decay`` override the study's ``training``.
    """

    learning_rate: Positive
    rho: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    auxiliary_lr: Positive | None = None
    clip: Clip = "global"
    method: str | None = None
    r: Count | None = None
    auxiliary_r: Count | None = None
    share: Literal["none", "A", "B"] | None = None
    rho_schedule: RhoSchedule | None = None
    adaptive: bool | None = None
    match_gradients: bool | None = None
    primary: Primary | None = None
    ascent_fraction: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = None
    inner_steps: Count | None = None
    optimizer: OptimizerSettings | None = None
    batch_size: Count | None = None
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] | None = None

    def of_training(self) -> dict[str, Any]:
        """What it overrides of the study's training."""
        given = {name: getattr(self, name) for name in OVERRIDES}
        return {name: value for name, value in given.items() if value is not None}


OVERRIDES = ("optimizer", "batch_size", "weight_decay")
"""Settings of a column that belong to its training, and not to its method."""


Tried = Annotated[list[Positive], Field(min_length=1)]
Range = Annotated[list[Positive], Field(min_length=2, max_length=2)]
"""Lower and upper end of what is tried."""


class TuningDesign(Settings):
    """The same number of settings for every method, from the same ranges: a scrambled Sobol sequence in log units.

    A method that has no radius or no auxiliary rate takes the other numbers of each point.
    """

    settings: Count = 16
    seed: int = 0
    learning_rate: Range
    rho: Range
    auxiliary_lr_ratio: Range


class TuningSettings(Settings):
    """How each method's settings were chosen, on the validation split and these seeds.

    Either ``design`` or grids by method; methods without a grid keep their settings. A setting counts if no seed
    diverged and the mean training loss is at most ``max_train_loss``; of these the lowest validation loss is chosen
    among those within a standard error of the best validation accuracy, or with ``fit_like``, a method of the
    study, the training loss nearest to that method's. With ``rise`` the worst case at the claims' radius is
    searched at every point too, with the study's effort.
    """

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    design: TuningDesign | None = None
    learning_rate: dict[str, Tried] = Field(default_factory=dict)
    rho: dict[str, Tried] = Field(default_factory=dict)
    auxiliary_lr_ratio: dict[str, Tried] = Field(default_factory=dict)
    max_train_loss: Positive = 0.1
    fit_like: str | None = None
    rise: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> TuningSettings:
        if (self.design is None) == (not self.learning_rate):
            raise ValueError("tuning: give either a design or grids of learning_rate by method")
        return self


class Study(Settings):
    """Everything that determines the numbers of an audit.

    ``seeds`` are paired: every method has the same initial factors and order of the data at a seed. With ``resample``
    a seed also draws the training examples, so that intervals speak of the data and not of one training set.
    ``device`` says where it runs: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``. It is part of no
    file's name: numbers of two devices differ by rounding.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]
    task: TaskSettings
    train_sizes: Annotated[list[Count], Field(min_length=1)]
    seeds: Count
    training: TrainingSettings = TrainingSettings()
    adapters: AdapterSettings
    methods: Annotated[dict[str, MethodSettings], Field(min_length=1)]
    measures: MeasureSettings
    claims: ClaimSettings
    tuning: TuningSettings | None = None
    resample: bool = False
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"

    @field_validator("train_sizes")
    @classmethod
    def _different_sizes(cls, sizes: list[int]) -> list[int]:
        if len(set(sizes)) < len(sizes):
            raise ValueError("expected each size once")
        return sizes

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, methods: dict[str, MethodSettings]) -> dict[str, MethodSettings]:
        for name, settings in methods.items():
            if name in METHODS and settings.method not in (None, name):
                raise ValueError(
                    f"{name}: a column of this name is the method {name}, got method {settings.method!r}; choose "
                    "another name for it"
                )
            wanted = settings.method or name
            if wanted not in METHODS and ":" not in wanted:
                raise ValueError(
                    f"unknown method {wanted!r}{near(wanted, METHODS)}; expected some of {', '.join(METHODS)}, or a "
                    "name of your own with one of them, or with package.module:Class, under `method`"
                )
            if not re.fullmatch(r"[A-Za-z0-9_]{1,100}", name):
                raise ValueError(f"{name!r}: expected at most 100 letters, digits and underscores")
        return methods

    @model_validator(mode="after")
    def _fit_is_tried(self) -> Study:
        if self.tuning is None:
            return self
        for name in ("learning_rate", "rho", "auxiliary_lr_ratio"):
            for method in getattr(self.tuning, name):
                if method not in self.methods:
                    raise ValueError(
                        f"tuning.{name}: the study has no method {method!r}{near(method, self.methods) or ';'} it has "
                        f"{', '.join(self.methods)}"
                    )
                kind = METHODS.get(self.methods[method].method or method)
                setting = "auxiliary_lr" if name == "auxiliary_lr_ratio" else name
                if kind is not None and setting not in ("learning_rate", *kind.uses):
                    raise ValueError(f"tuning.{name}: {method} uses no {setting}; leave it out there")
        if self.tuning.fit_like is None:
            return self
        tried = self.methods if self.tuning.design else self.tuning.learning_rate
        if self.tuning.fit_like not in tried:
            raise ValueError(
                f"tuning.fit_like: expected one of the methods that are tuned, {', '.join(tried)}; got "
                f"{self.tuning.fit_like!r}"
            )
        return self

    @model_validator(mode="after")
    def _claims_are_measured(self) -> Study:
        worst_case = self.measures.worst_case
        for name, radii in {"radii": worst_case.radii, "subspace_radii": worst_case.inside_radii}.items():
            if self.claims.rho not in radii:
                raise ValueError(
                    f"claims.rho: {self.claims.rho} is not among measures.worst_case.{name} {radii}; add it there"
                )
        return self

    def training_of(self, method: str) -> TrainingSettings:
        """How one column is trained."""
        return self.training.model_copy(update=self.methods[method].of_training())

    @property
    def rho(self) -> float:
        """Radius at which the claims are judged."""
        return self.claims.rho

    def cells(self) -> Iterator[Cell]:
        """All cells, seed by seed, so that an interrupted study has whole pairs."""
        for train_size in self.train_sizes:
            for seed in range(self.seeds):
                for method in self.methods:
                    yield Cell(method, seed, train_size)

    def run_name(self, cell: Cell) -> str:
        """Folder name of a cell's run: readable, and different whenever its training would be."""
        settings: dict[str, Any] = {
            "task": self.task.model_dump(exclude_none=True, exclude={"unit"}),
            "training": _named(self.training, "epochs", "batch_size", "warmup_ratio"),
            "adapters": _named(self.adapters, "r", "alpha", "target_modules"),
            "settings": self._method(cell.method),
        }
        if self.resample:
            settings["resample"] = True
        return f"{cell}-{fingerprint(settings)}"

    def recording_name(self, cell: Cell) -> str:
        """Folder name of what is recorded along a cell's training."""
        dynamics = self.measures.dynamics
        return f"{self.run_name(cell)}-{fingerprint(dynamics and dynamics.model_dump())}"

    def barriers_name(self) -> str:
        """File name of the barriers between minima, which depend on all runs of the first seed."""
        runs = [self.run_name(Cell(method, 0, size)) for size in self.train_sizes for method in self.methods]
        points = self.measures.surface and self.measures.surface.path_points
        return f"barriers-{fingerprint([*runs, points, 'all weights'])}"

    def base_name(self) -> str:
        """Folder name of the pretrained model."""
        return f"{re.sub(r'[^A-Za-z0-9_]+', '_', self.task.name)}-{fingerprint(self.task.base_settings())}"

    def cost_name(self) -> str:
        """File name of the step cost measurement, which does not depend on seeds."""
        fixed = {
            "task": self.task.model_dump(exclude_none=True, exclude={"unit"}),
            "training": _named(self.training, "epochs", "batch_size", "warmup_ratio"),
            "methods": {name: self._method(name) for name in self.methods},
            "adapters": _named(self.adapters, "r", "alpha", "target_modules"),
        }
        return f"cost-{fingerprint(fixed | {'rounds': self.measures.cost_rounds, 'version': 2})}"

    def _method(self, name: str) -> dict[str, Any]:
        return _named(self.methods[name], "learning_rate", "rho", "auxiliary_lr", "clip")


def _named(settings: Settings, *always: str) -> dict[str, Any]:
    """Settings for a name; of those not ``always`` in it only the ones that are set: new options keep old names."""
    return settings.model_dump(include=set(always)) | settings.model_dump(exclude=set(always), exclude_none=True)


def fingerprint(settings: Any) -> str:
    """Eight hexadecimal digits that change with the settings."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
