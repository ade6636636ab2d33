"""Sums over the processes of a `torch.distributed` group, each of which holds a part of the data."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def all_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, in place; the tensor itself when there is no process group."""
    if num_ranks() > 1:
        if dist.get_backend() == "nccl" and not tensor.is_cuda:  # which sums tensors of the GPU only
            there = tensor.cuda()
            dist.all_reduce(there)
            tensor.copy_(there)
        else:
            dist.all_reduce(tensor)
    return tensor


def num_ranks() -> int:
    """Processes in the group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def this_rank() -> int:
    """Number of this process in its group; 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def counts_by_rank(count: int) -> list[int]:
    """One number of every rank, in the order of the ranks."""
    counts = torch.zeros(num_ranks(), dtype=torch.int64)
    counts[this_rank()] = count
    return [int(one) for one in all_sum(counts)]
