"""Operators that sum a product over batches, through autograd graphs kept within a memory budget."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from landscape.distributed import all_sum
from landscape.operators.base import SymmetricOperator
from landscape.risk import EmpiricalRisk, to_device

Graph = TypeVar("Graph")


class RiskOperator(SymmetricOperator, Generic[Graph]):
    """Weighted mean over the data of a curvature matrix whose products follow from one graph per batch.

    Graphs are built once and kept as long as their saved tensors fit ``graph_budget``; those of the other batches are
    rebuilt for every product, which gives the same numbers more slowly. Running out of memory while a graph is built
    ends the keeping, not the run.

    Args:
        risk: The mean loss. The operator belongs to the weights at the time of construction.
        theta: Point (n,) other than the model's own weights.
        graph_budget: Bytes of saved tensors that may be kept, 1 GiB by default.

    Attributes:
        kept_bytes: Bytes that the kept graphs hold, estimated from the first batch.
        kept_batches: How many batches of the data they cover.

    Raises:
        FloatingPointError: The loss of a batch is not finite at this point.
    """

    def __init__(self, risk: EmpiricalRisk, *, theta: Tensor | None = None, graph_budget: int = 2**30) -> None:
        self.risk = risk
        self.shape = (risk.num_params, risk.num_params)
        self.dtype, self.device = risk.dtype, risk.device
        self.theta = (risk.theta if theta is None else theta.detach().clone()).requires_grad_()
        self._kept: list[Graph] = []
        per_example = self._bytes_per_example() if graph_budget > 0 else 0.0
        examples = 0
        for index, size in enumerate(risk.batch_sizes):
            if (examples + size) * per_example > graph_budget or graph_budget <= 0:
                break
            try:
                self._kept.append(self.build(index))
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                del self._kept[-1:]  # leave room for the graph that is rebuilt for every product
                break
            examples += size
        self.kept_batches = len(self._kept)
        self.kept_bytes = int(per_example * sum(risk.batch_sizes[: self.kept_batches]))

    @abstractmethod
    def build(self, index: int) -> Graph:
        """The graph of one batch at `theta`."""

    @abstractmethod
    def apply(self, graphs: Sequence[Graph], vector: Tensor, retain: bool) -> Tensor:
        """Unnormalised product (n,) of some batches' matrices with a vector; the graphs outlive it if ``retain``."""

    def matvec(self, vector: Tensor) -> Tensor:
        """Product (n,) with a vector (n,)."""
        if vector.shape != (self.shape[0],):
            raise ValueError(f"vector: expected shape ({self.shape[0]},), got {tuple(vector.shape)}")
        vector = vector.to(self.dtype)
        product = self.apply(self._kept, vector, True) if self._kept else torch.zeros_like(vector)
        for index in range(self.kept_batches, len(self.risk.batches)):
            product += self.apply([self.build(index)], vector, False)
        return all_sum(product) / self.risk.total_weight

    def losses(self, index: int) -> tuple[object, Tensor]:
        """Model outputs and per-example losses (n_i,) of one batch, with their graph; checked to be finite."""
        batch = to_device(self.risk.batches[index], self.device)
        with torch.enable_grad():
            outputs = self.risk.outputs(batch, self.risk.layout.split(self.theta))
            losses = self.risk.losses_of(outputs, batch)
        if not bool(losses.isfinite().all()):
            raise FloatingPointError(
                f"the loss of batch {index} is not finite at this point; its curvature is undefined there"
            )
        self.risk.check_differentiable(losses)
        return outputs, losses

    def _bytes_per_example(self) -> float:
        saved = _SavedBytes()
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, _identity):
            self.build(0)
        return saved.num_bytes / self.risk.batch_sizes[0]


class _SavedBytes:
    """Count the bytes that autograd saves, each storage once."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._seen: set[int] = set()

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.num_bytes += storage.nbytes()
        return tensor.detach()


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _is_out_of_memory(error: RuntimeError) -> bool:
    # torch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
