"""An auxiliary beside what a model trains by itself: its own weights, or adapters of PEFT's other kinds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from bilora.adapters import AUXILIARY, WRAPPED, adapted_layers, check_plain


def check_trains_itself(model: nn.Module) -> None:
    """Refuse a model beside whose own training no auxiliary can be put, or that trains LoRA.

    A `peft.PeftModel` of PEFT's other kinds (IA3, prefix tuning, VeRA, ...) trains what it trains.

    Raises:
        ValueError: It holds adapters without PEFT's model around them, LoRA, merged ones or several that are active, or
            trains what would not be saved, or nothing.
    """
    if not isinstance(model, PeftModel):
        check_plain(model)
        return
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            raise ValueError(
                f"model: expected a plain model, or one with adapters of another kind than LoRA; got LoRA at {name}: "
                "methods make it themselves (BiLoraConfig.from_lora), and bilora.minimum(model).model is the merged one"
            )
        if isinstance(module, BaseTunerLayer) and module.merged:
            raise ValueError(f"model: the adapter at {name} is merged, so that training it changes nothing; unmerge it")
    if len(model.active_adapters) != 1:
        raise ValueError(f"model: expected one active adapter, got {model.active_adapters or 'none'}; use set_adapter")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(
            "model: its adapter is frozen, so that there is nothing to train; load it by PeftModel.from_pretrained("
            "..., is_trainable=True)"
        )
    saved = get_peft_model_state_dict(model, adapter_name=model.active_adapters[0], save_embedding_layers=False)
    places = {tensor.data_ptr() for tensor in saved.values()}
    lost = [name for name in trained if not name.startswith("prompt_encoder.")]
    lost = [name for name in lost if model.get_parameter(name).data_ptr() not in places]
    if lost:
        raise ValueError(
            f"model: it trains {lost[0]} beside its adapter {model.active_adapters[0]!r}, and PEFT does not save that; "
            "freeze it, or name its module under modules_to_save of the adapter's settings"
        )


class OverAdapters(PeftModel):
    """The auxiliary around a `peft.PeftModel`: it computes as that one does, and shows the plain model below both."""

    def get_base_model(self) -> nn.Module:
        """The plain model, whose arguments and labels trainers look at."""
        below: nn.Module = self.base_model.model.get_base_model()
        return below

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inner model's output, with its prefixes and hooks."""
        return self.base_model.model(*args, **kwargs)

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The plain model with the inner adapter merged; the auxiliary is left out."""
        inner = without_auxiliary(self)
        assert isinstance(inner, PeftModel)
        plain: nn.Module = inner.base_model.merge_and_unload(*args, **kwargs)
        return plain

    def unload(self) -> nn.Module:
        """The inner model; the auxiliary is left out."""
        return without_auxiliary(self)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """What the inner model generates."""
        return self.base_model.model.generate(*args, **kwargs)


def attach_beside(model: nn.Module, lora: LoraConfig) -> PeftModel:
    """Put the auxiliary's LoRA over a model whose adapters, if it has some, go on as they were.

    In a layer that has an adapter of another kind the auxiliary lies outside of it: what it perturbs is the merged
    weight.
    """
    if not isinstance(model, PeftModel):
        return get_peft_model(model, lora, adapter_name=AUXILIARY)
    own = dict(model.peft_config)
    heads = [part for part in model.modules() if isinstance(part, AuxiliaryTrainingWrapper)]
    active = [list(part.active_adapters) for part in heads]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        outer = OverAdapters(model, lora, adapter_name=AUXILIARY)
    # PEFT puts the settings of all into one dictionary, and would save and load each with the others.
    outer.base_model.peft_config = {AUXILIARY: outer.peft_config[AUXILIARY]}
    model.peft_config = own
    for part, names in zip(heads, active, strict=True):  # PEFT turned off what has no part of the auxiliary's name
        part.set_adapter(names)
    return outer


def without_auxiliary(model: PeftModel) -> nn.Module:
    """What an auxiliary was put beside, as it was given; the auxiliary is taken out of it."""
    if AUXILIARY not in own_adapters(model):
        return model
    inner: nn.Module = model.base_model.model
    if not isinstance(inner, PeftModel):
        plain: nn.Module = model.unload()
        return plain
    for name, layer in adapted_layers(model).items():  # PEFT's unload would take the inner adapter along
        parent, _, child = name.rpartition(".")
        setattr(inner.get_submodule(parent), child, layer.base_layer)
    return inner


def own_adapters(model: PeftModel) -> list[str]:
    """Names of the adapters that were attached here: primary and auxiliary, which are LoRA."""
    return [name for name, settings in model.peft_config.items() if isinstance(settings, LoraConfig)]


def plain_name(name: str, layers: Iterable[str]) -> str:
    """A tensor's name in the model that an auxiliary was put beside, given the layers that have one."""
    name = name.removeprefix(WRAPPED)
    for layer in layers:
        if name.startswith(f"{layer}.base_layer."):
            return f"{layer}.{name.removeprefix(f'{layer}.base_layer.')}"
    return name
