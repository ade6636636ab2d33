"""Operators that sum a product over batches, through autograd graphs kept within a memory budget."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

from landscape.asking import expect_risk, expect_vector
from landscape.batches import map_tensors, to_device
from landscape.evaluation import exact_products, expect_gradients
from landscape.losses import Batch
from landscape.operators.base import SymmetricOperator
from landscape.operators.closed_forms import ONCE_MORE, ClosedForms
from landscape.operators.consistency import check_second_derivatives
from landscape.risk import EmpiricalRisk

Graph = TypeVar("Graph")
Parts = tuple[Tensor | None, ...]
"""A vector (n,) as its tensors, in the layout's order; none where it is 0."""

_ROUNDING = 1e3
_UNMEASURABLE = ("saved tensor hooks", "data pointer")
"""What torch says where a graph saves tensors that have no memory to be counted."""


class RiskOperator(SymmetricOperator, Generic[Graph]):
    """Weighted mean over the data of a curvature matrix whose products follow from one graph per batch.

    Graphs are built once and kept as long as their saved tensors, measured as they are built, fit ``graph_budget``;
    those of the other batches are rebuilt for every product, which gives the same numbers more slowly. Running out of
    memory, while a graph is built or later, ends the keeping, not the run.

    Args:
        risk: The mean loss. The operator belongs to the weights and buffers at the time of construction; it copies
            them, except for weights that are frozen (``requires_grad=False``).
        theta: Point (n,) other than the model's own weights.
        graph_budget: Bytes of saved tensors that may be kept, 1 GiB by default.
        check: Ask first whether the model's second derivatives can be trusted; see
            `landscape.operators.consistency.check_second_derivatives`.

    Attributes:
        leaves: The tensors of the point, in which graphs are differentiated.
        kept_bytes: Bytes of the tensors that the kept graphs have saved.

    Raises:
        ValueError: No batch's loss depends on theta, or second derivatives are not those of the first.
        FloatingPointError: The loss of a batch is not finite at this point.
    """

    def __init__(
        self, risk: EmpiricalRisk, *, theta: Tensor | None = None, graph_budget: int = 2**30, check: bool = True
    ) -> None:
        expect_risk(risk)
        expect_gradients()
        self.risk = risk
        self.shape = (risk.num_params, risk.num_params)
        self.dtype, self.device = risk.dtype, risk.device
        self._rest = risk.rest()
        self._rounding: float | None = None
        self._closed_forms = True
        if theta is not None:
            expect_vector("theta", theta, risk.num_params)
        self._parameters = risk.layout.leaves(risk.theta if theta is None else theta.to(risk.dtype))
        self.leaves = tuple(self._parameters.values())
        if check:
            check_second_derivatives(type(self), risk, self.theta)
        self._kept: list[Graph | None] = []
        self.kept_bytes = 0
        with _second_derivatives(), exact_products():
            self._keep_graphs(risk, graph_budget)
        if self.kept_batches == len(risk.batches):
            risk.check_used(any(graph is not None for graph in self._kept))

    def _keep_graphs(self, risk: EmpiricalRisk, graph_budget: int) -> None:
        measured: dict[str, int] = {}
        for index in range(len(risk.batches) if graph_budget > 0 else 0):
            try:
                saved = self._saved_bytes(index, measured)
                if self.kept_bytes + saved > graph_budget:
                    break
                self._kept.append(self._built(index))
            except RuntimeError as error:
                if any(words in str(error) for words in _UNMEASURABLE):
                    break  # of a model that differentiates by torch.func or in forward mode itself
                if not _is_out_of_memory(error):
                    raise
                del self._kept[-1:]  # leave room for the graph that is rebuilt for every product
                break
            self.kept_bytes += saved

    @property
    def theta(self) -> Tensor:
        """The point (n,)."""
        return self.risk.layout.join({name: leaf.detach() for name, leaf in self._parameters.items()})

    @property
    def kept_batches(self) -> int:
        """How many batches the kept graphs cover."""
        return len(self._kept)

    @abstractmethod
    def build(self, index: int) -> Graph | None:
        """The graph of one batch at `theta`; none if the batch's loss does not depend on it."""

    def _built(self, index: int) -> Graph | None:
        """The graph of one batch, of torch's own layers where the model differentiates more often than ours can be."""
        try:
            return self.build(index)
        except RuntimeError as error:
            if not self._closed_forms or ONCE_MORE not in str(error):
                raise
        self._closed_forms = False
        return self.build(index)

    @abstractmethod
    def pullback(self, graphs: Sequence[Graph], vector: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Functions of theta f and cotangents u such that Jᵀu is some batches' unnormalised product with a vector (n,).

        Empty where the product is 0.
        """

    @abstractmethod
    def value(self, epsilon: Tensor) -> Tensor:
        """The function whose derivative along vectors the products are made of, at theta + epsilon."""

    @abstractmethod
    def derivative(self, vector: Tensor) -> Tensor:
        """Its derivative along a vector (n,) at theta."""

    def rounding(self) -> float:
        """Size of products with unit vectors below which they are rounding, in units of |L| / ‖theta‖²."""
        if self._rounding is None:
            size = 1.0 + float(self.theta.double().square().sum())
            self._rounding = _ROUNDING * torch.finfo(self.dtype).eps * abs(self.risk.loss(self.theta)) / size
        return self._rounding

    def matvec(self, vector: Tensor) -> Tensor:
        """Product (n,) with a vector (n,)."""
        expect_vector("vector", vector, self.shape[0])
        vector = vector.detach().to(self.dtype)
        product = torch.zeros_like(vector)
        with _second_derivatives(), exact_products():
            try:
                self._add(product, self._kept, vector, True)
            except RuntimeError as error:
                if not _is_out_of_memory(error) or not self._kept:
                    raise
                self._kept, self.kept_bytes = [], 0
                product.zero_()
            for index in range(self.kept_batches, len(self.risk.batches)):
                self._add(product, [self._built(index)], vector, False)
        return self.risk.ranks.all_sum(product).div_(self.risk.total_weight)

    def _add(self, product: Tensor, graphs: Sequence[Graph | None], vector: Tensor, retain: bool) -> None:
        """Add some batches' product with a vector to ``product``, tensor by tensor."""
        used = [graph for graph in graphs if graph is not None]
        functions, cotangents = self.pullback(used, vector) if used else ((), ())
        if functions:
            with self.risk.layout.adding_to(product, self._parameters):
                torch.autograd.backward(functions, cotangents, retain_graph=retain, inputs=self.leaves)

    def losses(self, index: int) -> tuple[object, Tensor]:
        """Model outputs and per-example losses (n_i,) of one batch, with their graph; checked to be finite."""
        batch = to_device(self.risk.batches[index], self.device)
        with torch.enable_grad():
            outputs, losses = self._forward(batch)
            if self.risk.l2:
                losses = losses + self.risk.penalty(self._parameters)
        if not bool(losses.isfinite().all()):
            raise FloatingPointError(
                f"the loss of batch {index} is not finite at this point; its curvature is undefined there"
            )
        return outputs, losses

    def _forward(self, batch: Batch) -> tuple[object, Tensor]:
        if self._closed_forms:
            with ClosedForms() as forms:
                outputs = self.risk.outputs(batch, self._parameters, rest=self._rest)
                losses = self.risk.losses_of(outputs, batch)
            if not forms.differentiated:
                return outputs, losses
            self._closed_forms = False
        outputs = self.risk.outputs(batch, self._parameters, rest=self._rest)
        return outputs, self.risk.losses_of(outputs, batch)

    def _saved_bytes(self, index: int, measured: dict[str, int]) -> int:
        """Bytes that a batch's graph saves; measured once for batches of the same shapes."""
        shapes = str(map_tensors(self.risk.batches[index], lambda tensor: tensor.shape))
        if shapes not in measured:
            saved = _SavedBytes()
            with torch.autograd.graph.saved_tensors_hooks(saved.pack, _identity):
                self._built(index)
            measured[shapes] = saved.num_bytes
        return measured[shapes]


@contextmanager
def _second_derivatives() -> Iterator[None]:
    """Say it in the user's terms where torch has no derivative of a backward function.

    Raises:
        ValueError: It has none.
    """
    try:
        yield
    except RuntimeError as error:
        if "derivative for" not in str(error) or "not implemented" not in str(error):
            raise
        raise ValueError(
            f"risk: torch cannot differentiate a part of the model twice ({str(error).rstrip('.')}); write that part "
            "with plain operations (an EmbeddingBag as the mean of an Embedding), or choose params that it does not use"
        ) from error


class _SavedBytes:
    """Count the bytes that autograd saves, each storage once."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._seen: set[int] = set()

    def pack(self, tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided:
            return tensor.detach()
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
