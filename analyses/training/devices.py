"""Where a study trains and measures: the processor, or one GPU."""

from __future__ import annotations

import os

import torch

from analyses.study.base import StudyError


def check_device(name: str) -> None:
    """Refuse a GPU that is not there.

    Raises:
        StudyError: It is not.
    """
    count = torch.cuda.device_count()
    number = int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and (not torch.cuda.is_available() or number >= count):
        raise StudyError(f"device: expected auto, cpu or one of {count} CUDA devices, got {name!r}")


def take_device(name: str) -> torch.device:
    """The device that a setting means, for this process from now on.

    The Trainer would spread over all GPUs that it sees, so a process sees the one that it uses, as its first.

    Args:
        name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``. Of the processes that torchrun starts
            each takes the GPU of its own number, unless one is named.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_initialized():
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", name.partition(":")[2] or os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", 0)
