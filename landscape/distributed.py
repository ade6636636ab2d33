"""Sums over the processes of a `torch.distributed` group, each of which holds a part of the data."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import Any, Literal, Union

import torch
import torch.distributed as dist
from torch import Tensor

from landscape.batches import batch_size, map_tensors
from landscape.losses import Batch

Group = Union[Literal["all"], "dist.ProcessGroup", None]
"""Processes that share the data: all, a group (quoted: torch may be built without it), or none but this one."""


class Ranks:
    """The processes that measure together.

    Args:
        group: ``all`` of the default group, if there is one; a group of which this process is a member; or ``None``:
            this process alone, whatever others do.

    Raises:
        ValueError: ``group`` is something else, or this process is no member.

    >>> Ranks().count, Ranks(None).number, Ranks().all_sum(torch.ones(2))
    (1, 0, tensor([1., 1.]))
    """

    def __init__(self, group: Group = "all") -> None:
        own = group if dist.is_available() and isinstance(group, dist.ProcessGroup) else None
        if group is not None and group != "all" and own is None:
            raise ValueError(f"group: expected 'all', a torch.distributed process group or None, got {group!r}")
        self.group = group
        together = group is not None and dist.is_available() and dist.is_initialized()
        self._group = own
        self.count = dist.get_world_size(own) if together else 1
        self.number = dist.get_rank(own) if together else 0
        if self.number < 0:
            raise ValueError("group: this process is not a member of the group")

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over the ranks, in place; the tensor itself when there is one."""
        if self.count > 1:
            if dist.get_backend(self._group) == "nccl" and not tensor.is_cuda:  # which sums tensors of the GPU only
                there = tensor.cuda()
                dist.all_reduce(there, group=self._group)
                tensor.copy_(there)
            else:
                dist.all_reduce(tensor, group=self._group)
        return tensor

    def share(self, batches: Iterable[Batch]) -> list[Batch]:
        """This rank's part of batches that every rank has read: one run of the examples, as long as the others'.

        Every tensor of a batch has one row per example.

        >>> len(Ranks().share([(torch.zeros(5, 2), torch.zeros(5))]))
        1
        """
        read = list(batches)
        if self.count == 1:
            return read
        total, first, mine = sum(map(batch_size, read)), 0, []
        low, high = (total * number // self.count for number in (self.number, self.number + 1))
        for batch in read:
            size = batch_size(batch)
            rows = slice(max(low - first, 0), max(high - first, 0))
            if len(range(size)[rows]):
                mine.append(map_tensors(batch, itemgetter(rows)))
            first += size
        return mine

    def gathered(self, mine: Any) -> list[Any]:
        """Something of every rank, small and on the CPU, in the order of the ranks."""
        if self.count == 1:
            return [mine]
        found = [None] * self.count
        dist.all_gather_object(found, mine, group=self._group)
        return found

    def counts(self, count: int) -> list[int]:
        """One number of every rank, in the order of the ranks."""
        counts = torch.zeros(self.count, dtype=torch.int64)
        counts[self.number] = count
        return [int(one) for one in self.all_sum(counts)]
