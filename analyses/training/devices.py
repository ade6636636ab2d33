"""Where a study trains and measures: the processor, or one GPU."""

from __future__ import annotations

import os

import torch

from analyses.study.base import StudyError

WORKER = "LANDSCAPE_WORKER"
"""Variable with the number of a worker process among those of its machine."""

# CUDA reads which GPUs it may see when it is first asked anything; asked through the driver's library, it is not.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


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
        name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``. Unless one is named, each of the
            processes that torchrun starts takes the GPU of its own number, and the workers of a study take the GPUs
            in turn: with more workers than GPUs, several share one.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_initialized():
        os.environ["CUDA_VISIBLE_DEVICES"] = _the_one_of(name.partition(":")[2])
    return torch.device("cuda", 0)


def _the_one_of(number: str) -> str:
    """The GPU to be seen, of those that this process was given; number N is the N-th of these."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = [entry.strip() for entry in given.split(",")] if given else [str(n) for n in range(_gpus())]
    if len(seen) == 1:  # by an earlier call, or by a cluster
        return seen[0]
    turn = int(number or os.environ.get("LOCAL_RANK") or os.environ.get(WORKER) or 0)
    return seen[turn % len(seen)]


def _gpus() -> int:
    return max(1, torch.cuda.device_count())
