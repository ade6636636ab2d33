"""The registry of fine-tuning methods: one file a family, one line a method."""

from __future__ import annotations

import importlib

from torch import nn

from bilora.config import BiLoraConfig
from bilora.methods.base import Method
from bilora.methods.bilora import BiLora, DualLora, RandomAuxiliary
from bilora.methods.flat import FlatLora
from bilora.methods.full import FullFineTuning
from bilora.methods.ladder import BiLoraInner, LoraSamLag, LoraSamRank
from bilora.methods.lora import Lora, LoraDoubleRank
from bilora.methods.refreshed import BiLoraFresh, BiLoraStale
from bilora.methods.sam import LoraSam, LoraSamFull, Sam

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        FullFineTuning,
        Sam,
        Lora,
        LoraSam,
        LoraSamFull,
        FlatLora,
        BiLora,
        DualLora,
        RandomAuxiliary,
        LoraDoubleRank,
        LoraSamRank,
        LoraSamLag,
        BiLoraStale,
        BiLoraFresh,
        BiLoraInner,
    )
}


def method_class(name: str) -> type[Method]:
    """The method of a name of the registry, or the class at a place of one's own, ``package.module:Class``.

    Raises:
        ValueError: There is none.
    """
    if name in METHODS:
        return METHODS[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(
            f"method: expected one of {', '.join(METHODS)}, or a class of your own as package.module:Class; "
            f"got {name!r}"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module does
        what = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise ValueError(f"method: cannot import {name!r}, expected package.module:Class: {what}{error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(f"method: {name} is no class derived from bilora.Method")
    return found


def build_method(model: nn.Module, config: BiLoraConfig, *, seed: int) -> Method:
    """Prepare ``model`` for the method that ``config`` names.

    Raises:
        ValueError: The settings are none, the method is unknown, would ignore a setting, or does not fit the model.
    """
    if not isinstance(config, BiLoraConfig):
        raise ValueError(
            f"bilora: expected a BiLoraConfig, got {type(config).__name__}; use BiLoraConfig(method=…, …), or "
            "BiLoraConfig.from_lora for a LoraConfig"
        )
    return method_class(config.method)(model, config, seed=seed)


__all__ = ["METHODS", "Method", "build_method", "method_class"]
