"""What the trainer writes beside the parent's files, and how it is read back."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from bilora.adapters import AUXILIARY, PRIMARY, adapted_layers, adapter_prefixes
from bilora.attaching import MOVES_THE_BASE, initial_factors
from bilora.beside import own_adapters, without_auxiliary
from bilora.buffers import BUFFERS, load_buffers, moved_buffers, save_buffers
from bilora.config import FILE, BiLoraConfig
from bilora.methods.base import Method

_STATE = "bilora_state.json"
_STATE_TENSORS = "bilora_state.safetensors"
OWN = "bilora_own_weights.safetensors"
"""All weights but the adapters', in a checkpoint of a model that trains them beside an auxiliary."""
_WEIGHTS = "model.safetensors"
INITIAL = "bilora_initial.safetensors"
"""Initial factors of an adapter that changed the frozen weights, in a checkpoint."""
_ADAPTER, _ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def clear_earlier(directory: Path) -> None:
    """Remove what an earlier run left in a folder that is saved into again, where ``bilora.json`` says that one did.

    A method writes some of these files and another one others: what stays of both would be read as one model.
    """
    if not (directory / FILE).is_file():
        return
    for name in (OWN, INITIAL, BUFFERS, _STATE, _STATE_TENSORS, _ADAPTER, _ADAPTER_CONFIG):
        (directory / name).unlink(missing_ok=True)
    for name in (PRIMARY, AUXILIARY):
        if (directory / name / _ADAPTER_CONFIG).is_file():
            shutil.rmtree(directory / name)


def save_adapter(model: PeftModel, name: str, directory: str | Path) -> None:
    """Save one adapter so that `PeftModel.from_pretrained(base, directory)` computes what was trained.

    PiSSA and LoRA-GA take their first product s·B₀A₀ out of the frozen weights. Their change against the plain model,
    s(BA − B₀A₀), is saved as plain LoRA of twice the rank, `[B −B₀][A; A₀]`.

    Batch statistics and other buffers that training moved are no part of an adapter: they go into a file beside it,
    which `bilora.minimum` reads and PEFT does not, with a warning.

    Raises:
        ValueError: There is no such adapter, or it is of such a kind and the model was not prepared here.
    """
    directory = Path(directory)
    if PRIMARY not in own_adapters(model) and name != AUXILIARY and _trains_another_kind(model):
        save_whole(model, directory)
        return
    if name not in model.peft_config:
        raise ValueError(f"name: expected one of the model's adapters, {', '.join(model.peft_config)}; got {name!r}")
    _save_flat(model, name, directory)
    _save_moved_buffers(model, directory)


def _save_flat(model: PeftModel, name: str, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        model.save_pretrained(scratch, selected_adapters=[name])
        # PEFT puts an adapter that is not called "default" into a folder of its name.
        there = Path(scratch) if name == "default" else Path(scratch) / name
        if getattr(model.peft_config[name], "init_lora_weights", None) in MOVES_THE_BASE:
            _make_plain(model, name, there)
        for file in there.iterdir():
            if file.is_file():
                shutil.move(file, directory / file.name)


def _save_moved_buffers(model: PeftModel, directory: Path) -> None:
    if save_buffers(model, directory):
        first = next(iter(moved_buffers(model)))
        warnings.warn(
            f"training moved buffers of the frozen model, {first} say, which an adapter does not hold: "
            f"PeftModel.from_pretrained(base, {str(directory)!r}) leaves the base's; use "
            "bilora.minimum(folder, base=base), or list their modules under modules_to_save before training",
            stacklevel=2,
        )


def _make_plain(model: PeftModel, name: str, directory: Path) -> None:
    initial = initial_factors(model)
    if not initial:
        raise ValueError(
            f"model: its adapter {name!r} changed the frozen weights when it was made, by an amount that is not known "
            "here; expected a model prepared by bilora"
        )
    # Of embeddings and heads among the targets PEFT writes the layer below, too, from which the product is taken out.
    tensors = {key: tensor for key, tensor in load_file(directory / _ADAPTER).items() if ".base_layer." not in key}
    for layer, (a, b) in initial.items():
        down, up = (f"base_model.model.{layer}.lora_{factor}.weight" for factor in "AB")
        tensors[down] = torch.cat([tensors[down], a.to(tensors[down])])
        tensors[up] = torch.cat([tensors[up], -b.to(tensors[up])], dim=1)
    save_file(tensors, directory / _ADAPTER, metadata={"format": "pt"})
    config: dict[str, Any] = json.loads((directory / _ADAPTER_CONFIG).read_text())
    config |= {"init_lora_weights": True, "lora_ga_config": None}
    for key in ("r", "lora_alpha"):
        config[key] *= 2
    for key in ("rank_pattern", "alpha_pattern"):
        config[key] = {pattern: 2 * value for pattern, value in config[key].items()}
    (directory / _ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _trains_another_kind(model: PeftModel) -> bool:
    inner = model.base_model.model if AUXILIARY in own_adapters(model) else model
    return isinstance(inner, PeftModel) and not own_adapters(inner)


def save_whole(model: PeftModel, directory: Path) -> None:
    """Save what trained itself beside an auxiliary, without the auxiliary; it is copied for that.

    A model's own weights, or the active adapter of another kind as PEFT saves it.
    """
    plain = without_auxiliary(copy.deepcopy(model))
    if isinstance(plain, PeftModel):
        _save_flat(plain, plain.active_adapters[0], directory)
        _save_moved_buffers(model, directory)
    elif isinstance(plain, PreTrainedModel):
        plain.save_pretrained(directory)
    else:
        directory.mkdir(parents=True, exist_ok=True)
        save_model(plain, str(directory / _WEIGHTS))


def save_own_weights(model: PeftModel, checkpoint: Path) -> None:
    """Save everything but the adapters, each storage once: they alone do not say what was trained."""
    once = {tensor.data_ptr(): (name, tensor) for name, tensor in reversed(_own_weights(model).items())}
    save_file({name: tensor.contiguous() for name, tensor in once.values()}, checkpoint / OWN)


@torch.no_grad()
def _load_own_weights(model: PeftModel, checkpoint: Path) -> None:
    mine = _own_weights(model)
    for name, tensor in load_file(checkpoint / OWN).items():
        mine[name].copy_(tensor)


def _own_weights(model: PeftModel) -> dict[str, Tensor]:
    adapters = adapter_prefixes(model)
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(adapters)}


def load_adapters(model: PeftModel, checkpoint: Path) -> None:
    """Load every adapter of the model from a checkpoint, and its own weights if they were trained.

    Which adapters are active and trained stays.

    Raises:
        ValueError: The frozen weights are not those that the checkpoint's adapters were trained on.
    """
    names = own_adapters(model)
    missing = [name for name in names if not (checkpoint / name / _ADAPTER).is_file()]
    if missing:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} holds no adapter {missing[0]!r} of a training under way; expected a "
            "folder checkpoint-N, not what save_model wrote"
        )
    _check_initial(model, checkpoint)
    for name in names:
        set_peft_model_state_dict(model, load_peft_weights(str(checkpoint / name), device="cpu"), adapter_name=name)
    if (checkpoint / OWN).is_file() and PRIMARY not in names:
        _load_own_weights(model, checkpoint)
    else:
        load_buffers(model, checkpoint)


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load all weights from a checkpoint.

    Through ``from_pretrained`` where names differ: transformers 5 saves some models under older names of their weights,
    which the trainer's own loading would report as missing and leave as they are.

    Raises:
        ValueError: The checkpoint lacks a weight of the model's.
    """
    if not isinstance(model, PreTrainedModel):
        load_model(model, str(checkpoint / _WEIGHTS))
        return
    stored: dict[str, Tensor] = {}
    for file in sorted(checkpoint.glob("model*.safetensors")):
        stored |= load_file(file)
    # A tied weight is stored once, under one of its names.
    aliases: dict[int, list[str]] = {}
    mine = model.state_dict(keep_vars=True)
    for name, tensor in mine.items():
        aliases.setdefault(id(tensor), []).append(name)
    found = {name: stored[other] for names in aliases.values() for name in names for other in names if other in stored}
    if found.keys() != mine.keys():
        widest = torch.float64 if any(tensor.dtype == torch.float64 for tensor in mine.values()) else torch.float32
        renamed = type(model).from_pretrained(checkpoint, local_files_only=True, dtype=widest).state_dict()
        found = {name: renamed[name] for name in mine if name in renamed} | found
    missing = sorted(mine.keys() - found.keys())
    if missing:
        raise ValueError(f"resume_from_checkpoint: {checkpoint} holds no weights for {', '.join(missing[:3])}")
    model.load_state_dict(found)


def check_config(config: BiLoraConfig, checkpoint: Path) -> None:
    """Refuse a checkpoint of other settings.

    Raises:
        ValueError: The checkpoint has none, or they differ.
    """
    file = checkpoint / FILE
    if not file.is_file():
        raise ValueError(f"resume_from_checkpoint: {checkpoint} has no {FILE}; expected one of BiLoraTrainer's")
    stored = BiLoraConfig.model_validate_json(file.read_text())
    mine, theirs = (_without_order(one.model_dump()) for one in (config, stored))
    if mine != theirs:
        changed = ", ".join(
            f"{key} {theirs[key]!r} there, {mine[key]!r} here" for key in mine if mine[key] != theirs[key]
        )
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} was written with other settings ({changed}); "
            "use the same settings or start anew"
        )


def _without_order(settings: dict[str, Any]) -> dict[str, Any]:
    """Names of layers mean the same in any order."""
    return {key: sorted(value) if isinstance(value, list) else value for key, value in settings.items()}


def write_state(method: Method, checkpoint: Path) -> None:
    """Note what resuming needs beside the weights and the step."""
    (checkpoint / _STATE).write_text(json.dumps(method.state()) + "\n")
    tensors = method.state_tensors()
    if tensors:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, checkpoint / _STATE_TENSORS)
    if isinstance(method.model, PeftModel):
        save_buffers(method.model, checkpoint)
    initial = initial_factors(method.model)
    if initial:
        save_file(_named(initial), checkpoint / INITIAL)


def load_state(method: Method, checkpoint: Path) -> None:
    """Take up what `write_state` noted."""
    file = checkpoint / _STATE
    if file.is_file():
        method.load_state(json.loads(file.read_text()))
    if (checkpoint / _STATE_TENSORS).is_file():
        method.load_state_tensors(load_file(checkpoint / _STATE_TENSORS))


def _named(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{layer}/{name}": factor.cpu().contiguous()
        for layer, pair in factors.items()
        for name, factor in zip("AB", pair, strict=True)
    }


def _check_initial(model: PeftModel, checkpoint: Path) -> None:
    file = checkpoint / INITIAL
    mine = _named(initial_factors(model))
    if not file.is_file():
        return
    theirs = load_file(file)
    if mine.keys() != theirs.keys() or any(
        not torch.allclose(mine[name], theirs[name], rtol=1e-4, atol=1e-6) for name in theirs
    ):
        raise ValueError(
            f"resume_from_checkpoint: the frozen weights of {len(adapted_layers(model))} layers were made from other "
            f"initial factors than in {checkpoint}; train the same primary, and give LoRA-GA the same gradients (the "
            "same batches) as before"
        )
