"""Processes that torchrun has started, measuring one minimum together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from analyses.study import StudyError


@dataclass(frozen=True)
class Place:
    """This process among those that measure together.

    Attributes:
        rank: Its number; the first one writes.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def agree(self, answer: bool) -> bool:
        """The first process's answer, everywhere."""
        if self.count == 1:
            return answer
        found = [answer]
        dist.broadcast_object_list(found)
        return found[0]


def ranks_of_torchrun() -> int:
    """How many processes torchrun has started; 1 where it has not, whatever else the environment says of a world."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


@contextmanager
def together() -> Iterator[Place]:
    """Join the other processes, over nccl where each has a GPU of its own, else over gloo; alone without torchrun.

    Raises:
        StudyError: The processes do not find each other.
    """
    count = ranks_of_torchrun()
    if count == 1 or dist.is_initialized():
        yield Place() if count == 1 else Place(dist.get_rank(), dist.get_world_size())
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        dist.init_process_group("nccl" if gpus >= count else "gloo")
    except (RuntimeError, ValueError) as error:
        raise StudyError(f"torchrun: the {count} processes do not find each other: {error}") from error
    try:
        yield Place(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
