"""Settings of the update rule."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch.optim import Optimizer

from analyses.study.base import Settings, StudyError, near
from analyses.study.importing import in_words
from bilora.optimizers import over_groups


class OptimizerSettings(Settings):
    """The update rule, in place of AdamW: for the whole study under ``training``, or for one column.

    ``name`` is a class of `torch.optim` (``SGD``, ``Adam``, …) or the place of another, ``package.module:Class``
    (``pytorch_optimizer:Lion`` say); ``options`` go to it. The learning rate is the column's, and an auxiliary that
    learns ascends by the same rule with a state of its own. ``Muon`` moves matrices alone, as adapters are;
    ``pytorch_optimizer:Muon`` moves the vectors of whole fine-tuning by AdamW, at the option ``adamw_lr``.
    """

    name: Annotated[str, Field(min_length=1)]
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _rates_stand_elsewhere(cls, options: dict[str, Any]) -> dict[str, Any]:
        for option, place in {"lr": "methods.NAME.learning_rate", "weight_decay": "training.weight_decay"}.items():
            if option in options:
                raise ValueError(f"{option}: expected under {place}, which the records name; leave it out here")
        return options

    def load(self) -> type[Optimizer]:
        """The class.

        Raises:
            StudyError: There is none, or its options do not fit.
        """
        module, sign, name = self.name.rpartition(":")
        try:
            found = getattr(importlib.import_module(module if sign else "torch.optim"), name)
        except Exception as error:  # whatever the user's module does
            known = [one for one in vars(torch.optim) if one[:1].isupper()]
            raise StudyError(
                f"optimizer.name: cannot import {self.name!r}: {in_words(error)}; expected a class of torch.optim, or "
                f"package.module:Class{near(self.name, known)}"
            ) from error
        if not (isinstance(found, type) and issubclass(found, Optimizer)):
            raise StudyError(f"optimizer.name: {self.name} is no torch.optim.Optimizer")
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        try:
            made = over_groups(found, [{"params": [weight]}], {"lr": 1e-3, **self.options})
        except Exception as error:  # a class of the user's may raise anything
            raise StudyError(f"optimizer.options: {self.name} refuses {self.options}: {error}") from error
        weight.grad = torch.ones_like(weight)
        try:
            begin = getattr(made, "train", None)  # of those that average weights while they train
            if callable(begin):
                begin()
            made.step()
        except Exception as error:
            raise StudyError(
                f"optimizer.name: {self.name} takes no step from a dense gradient alone: {in_words(error)}; expected "
                "an optimizer that does"
            ) from error
        return found
