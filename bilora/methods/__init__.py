"""The registry of fine-tuning methods: one file a family, one line a method."""

from __future__ import annotations

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


def build_method(model: nn.Module, config: BiLoraConfig, *, seed: int) -> Method:
    """Prepare ``model`` for the method that ``config`` names.

    Raises:
        ValueError: The method is unknown, would ignore a setting, or does not fit the model.
    """
    if config.method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}; got {config.method!r}")
    return METHODS[config.method](model, config, seed=seed)


__all__ = ["METHODS", "Method", "build_method"]
