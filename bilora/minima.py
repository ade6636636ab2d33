"""The road from a trained model to its landscape: from a trainer, a model with adapters, or a folder."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
import transformers
from peft import PeftModel
from peft.utils import load_peft_weights
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, Trainer

from bilora.adapters import AUXILIARY, PRIMARY, WRAPPED, adapter_factors, held_adapter
from bilora.attaching import attach_ia3, layers_inside
from bilora.beside import own_adapters, plain_name, without_auxiliary
from bilora.buffers import load_buffers
from bilora.checkpoints import INITIAL, OWN
from bilora.config import FILE, BiLoraConfig
from bilora.measured import Minimum, Pair
from bilora.merging import merged_adapters, trained_by_itself

_Module = TypeVar("_Module", bound=nn.Module)


def minimum(source: Trainer | nn.Module | str | Path, *, base: nn.Module | None = None) -> Minimum:
    """What was trained, as a plain model with the spaces of its adapters.

    The source is left as it is: its model is copied, so that the memory for one more is needed; in float32 where
    adapters are merged into weights of half precision, in whose rounding their change would be lost.

    Args:
        source: A trainer; a `peft.PeftModel`, whose active adapters without the auxiliary are merged; a plain model; or
            a folder that holds an adapter, a checkpoint of `BiLoraTrainer`'s, or a whole Hugging Face model.
        base: The plain model under an adapter in a folder, in the state in which the training found it; for a whole
            model, and for adapters of PEFT's own that change the weights below them at the start (PiSSA, OLoRA), what
            it is compared with for ``updates``.

    Raises:
        ValueError: The folder holds none of these, an adapter's base is missing, adapters lie in other layers than
            linear ones, or PEFT cannot merge them.

    >>> from bilora import BiLoraConfig, attach
    >>> net = nn.Sequential(nn.Linear(4, 3))
    >>> found = minimum(attach(net, BiLoraConfig(r=2, target_modules=["0"])))
    >>> found.weight_names, sorted(found.factors)
    (('0.weight',), ['auxiliary', 'primary'])
    """
    if isinstance(source, str | Path):
        return _from_folder(Path(source), base)
    model = source.model if isinstance(source, Trainer) else source
    if isinstance(model, PeftModel):
        if PRIMARY not in own_adapters(model) and AUXILIARY in own_adapters(model):
            trained = _unwrapped(copy.deepcopy(model))
            factors = adapter_factors(trained, AUXILIARY)
            pairs = {layer: (pair.A.detach(), pair.B.detach()) for layer, pair in factors.items()}
            return trained_by_itself(without_auxiliary(trained), pairs, pairs)
        return merged_adapters(_unwrapped(copy.deepcopy(model)), base)
    if not isinstance(model, nn.Module):
        raise ValueError(f"source: expected a trainer, a model or a folder, got {type(source).__name__}")
    if (held := held_adapter(model)) is not None:
        raise ValueError(
            f"source: the model holds an adapter at {held}; pass the peft.PeftModel around it, or what its "
            "merge_and_unload() returns"
        )
    return _whole(_unwrapped(copy.deepcopy(model)), base)


def _unwrapped(model: _Module) -> _Module:
    """A copy of a trainer's model without the mixed precision that accelerate puts around its forward pass."""
    for module in model.modules():
        own = vars(module).pop("_original_forward", None)
        if own is not None:
            vars(module).pop("forward", None)
            if getattr(own, "__func__", None) is not type(module).forward:  # it was one of the module's own
                module.forward = own
    return model


def _whole(model: nn.Module, base: nn.Module | None) -> Minimum:
    model.requires_grad_(True)
    names = tuple(name for name, _ in model.named_parameters())
    updates = {}
    if base is not None:
        before = dict(base.named_parameters())
        updates = {name: p.detach() - before[name].detach() for name, p in model.named_parameters() if name in before}
    return Minimum(model, names, updates, {})


def _from_folder(folder: Path, base: nn.Module | None) -> Minimum:
    inside = folder / PRIMARY if (folder / PRIMARY / "adapter_config.json").is_file() else folder
    if (inside / "adapter_config.json").is_file():
        if base is None:
            raise ValueError(
                f"base: {folder} holds an adapter; expected the plain model that it was trained on, got None"
            )
        _refuse_moved_base(folder)
        kind = json.loads((inside / "adapter_config.json").read_text()).get("init_lora_weights")
        if isinstance(kind, str) and kind.startswith("pissa_niter"):
            raise ValueError(
                f"source: {folder} was trained from {kind}, whose base PEFT draws anew at random when it loads the "
                "adapter; pass the trained model itself, or an adapter saved with path_initial_model_for_weight_"
                "conversion"
            )
        model = PeftModel.from_pretrained(copy.deepcopy(base), str(inside), adapter_name=PRIMARY)
        beside = None if own_adapters(model) else _settings_beside(folder)
        if beside is None:
            found = merged_adapters(model, base)
        else:
            found = trained_by_itself(model, layers_inside(model, beside), {})
        load_buffers(found.model, folder)
        auxiliary = folder / AUXILIARY
        if (auxiliary / "adapter_config.json").is_file():
            found.factors[AUXILIARY] = _stored_factors(auxiliary)
        return found
    if (folder / OWN).is_file():
        return _from_own_weights(folder, base)
    if (folder / "config.json").is_file():
        return _whole(load_whole(folder), base)
    raise ValueError(f"source: {folder} holds neither adapter_config.json nor config.json; expected a trained model")


@torch.no_grad()
def _from_own_weights(checkpoint: Path, base: nn.Module | None) -> Minimum:
    """A checkpoint of a model whose own weights were trained beside an auxiliary."""
    if base is None:
        raise ValueError(f"base: {checkpoint} holds weights without a model; expected the plain model, got None")
    plain, pairs = copy.deepcopy(base), dict[str, Pair]()
    settings = _settings_beside(checkpoint)
    if settings is not None and settings.primary == "ia3" and not isinstance(plain, PeftModel):
        plain = attach_ia3(plain, settings)
    if (checkpoint / AUXILIARY).is_dir():
        pairs = {name.removesuffix(".weight"): pair for name, pair in _stored_factors(checkpoint / AUXILIARY).items()}
    places = plain.state_dict()
    for key, tensor in load_file(checkpoint / OWN).items():
        if (name := plain_name(key, pairs)) not in places:
            raise ValueError(
                f"base: {checkpoint} holds {name}, which the given model has not; expected the model that the training "
                "was given, with its adapters"
            )
        places[name].copy_(tensor)
    found = trained_by_itself(plain, pairs, pairs)
    if found.updates or isinstance(plain, PeftModel):
        return found
    before, after = dict(base.named_parameters(remove_duplicate=False)), dict(found.model.named_parameters())
    return replace(found, updates={name: after[name].detach() - before[name].detach() for name in found.weight_names})


def _settings_beside(folder: Path) -> BiLoraConfig | None:
    """Settings of the training that wrote a folder, if they name the layers to measure."""
    settings = BiLoraConfig.from_pretrained(folder) if (folder / FILE).is_file() else None
    return None if settings is None or "target_modules" not in settings.model_fields_set else settings


def load_whole(folder: Path) -> PreTrainedModel:
    """The model in a Hugging Face folder, of the class that its ``config.json`` names, in eval mode.

    Raises:
        ValueError: It names none that transformers has.
    """
    named = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    architecture = getattr(transformers, named[0], None)
    if architecture is None:
        raise ValueError(f"source: {folder}/config.json names no model class of transformers, got {named[0]!r}")
    model: PreTrainedModel = architecture.from_pretrained(folder, local_files_only=True)
    return model.eval()


def _refuse_moved_base(folder: Path) -> None:
    if (folder / INITIAL).is_file():
        raise ValueError(
            f"source: {folder} is a checkpoint of an adapter that changed the frozen weights when it was made; use "
            "what trainer.save_model writes, or the trainer itself"
        )


def _stored_factors(folder: Path) -> dict[str, Pair]:
    tensors = load_peft_weights(str(folder), device="cpu")
    factors = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            layer = key.removeprefix(WRAPPED).removesuffix(".lora_A.weight")
            factors[f"{layer}.weight"] = (a, tensors[key.replace("lora_A", "lora_B")])
    return factors
