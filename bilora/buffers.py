"""Buffers of a model under adapters that training moved: batch statistics, which no adapter holds."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bilora.adapters import WRAPPED, adapter_prefixes

BUFFERS = "bilora_buffers.safetensors"
"""Of the plain model that training moved, beside an adapter or in a checkpoint."""
_FIRST = "bilora_first_buffers"
_PEFTS_OWN = (".modules_to_save.", ".original_module.")


def remember_buffers(model: nn.Module) -> None:
    """Note the persistent buffers of a model that adapters were attached to, as they are before training."""
    setattr(model, _FIRST, {name: buffer.detach().clone() for name, buffer in _buffers(model).items()})


def moved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that are no longer as they were then, named as in the plain model; none if nobody noted them."""
    first: dict[str, Tensor] = getattr(model, _FIRST, {})
    now = _buffers(model)
    return {name: now[name] for name, one in first.items() if name in now and not torch.equal(now[name].to(one), one)}


def save_buffers(model: nn.Module, directory: Path) -> bool:
    """Write the moved ones into a folder, if there are any, and say whether; a file of an earlier save goes."""
    moved = moved_buffers(model)
    (directory / BUFFERS).unlink(missing_ok=True)
    if moved:
        save_file({name: buffer.contiguous() for name, buffer in moved.items()}, directory / BUFFERS)
    return bool(moved)


@torch.no_grad()
def load_buffers(model: nn.Module, directory: Path) -> None:
    """Put buffers back to where they were when `save_buffers` wrote; those that it left out had not moved."""
    first: dict[str, Tensor] = getattr(model, _FIRST, {})
    stored = load_file(directory / BUFFERS) if (directory / BUFFERS).is_file() else {}
    for name, buffer in _buffers(model).items():
        value = stored.get(name, first.get(name))
        if value is not None:
            buffer.copy_(value)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    persistent = model.state_dict().keys()
    adapters = adapter_prefixes(model)
    return {
        _plain(name): buffer
        for name, buffer in model.named_buffers()
        if name in persistent and not name.startswith(adapters) and not any(part in name for part in _PEFTS_OWN)
    }


def _plain(name: str) -> str:
    while name.startswith(WRAPPED):  # an adapter of another kind may lie below the auxiliary
        name = name.removeprefix(WRAPPED)
    return name.replace(".base_layer.", ".")
