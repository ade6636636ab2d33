"""The method's settings in the configuration that loggers record as training begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments

_ASKED = "to_dict"


@contextmanager
def settings_logged(trainer: Trainer, settings: dict[str, Any]) -> Iterator[None]:
    """Let the trainer's loggers see settings under ``bilora`` beside its arguments.

    Loggers (TensorBoard, Weights & Biases, MLflow, …) ask the arguments for a dictionary when training begins. It has
    the settings until the last of them has asked, no longer: checkpoints hold the arguments as they were given.
    """
    callbacks = trainer.callback_handler.callbacks
    first, last = _Shown(settings), _Hidden()
    callbacks.insert(0, first)
    callbacks.append(last)
    try:
        yield
    finally:
        callbacks[:] = [one for one in callbacks if one is not first and one is not last]
        trainer.args.__dict__.pop(_ASKED, None)


class _Shown(TrainerCallback):
    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def on_train_begin(self, args: TrainingArguments, *unused: Any, **parts: Any) -> None:
        args.__dict__[_ASKED] = lambda: type(args).to_dict(args) | {"bilora": self._settings}


class _Hidden(TrainerCallback):
    def on_train_begin(self, args: TrainingArguments, *unused: Any, **parts: Any) -> None:
        args.__dict__.pop(_ASKED, None)
