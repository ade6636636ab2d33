"""The function under study: the mean loss over a data set as a function of a flat vector of weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.params import Layout, ParameterFilter, select_parameters

Batch = Mapping[str, Any] | tuple[Any, Any] | list[Any]
PerExampleLoss = Callable[[Any, Batch], Tensor]

_LOW_PRECISION = (torch.float16, torch.bfloat16)


def cross_entropy(outputs: Any, batch: Batch) -> Tensor:
    """Cross-entropy of the logits for each example.

    Args:
        outputs: Logits (n, classes), or a Hugging Face output that holds them as ``.logits``.
        batch: Pair whose second part, or mapping whose ``labels``, are the class indices (n,).

    Returns:
        Losses (n,) in nats.
    """
    return F.cross_entropy(_logits(outputs), _targets(batch), reduction="none")


def zero_one(outputs: Any, batch: Batch) -> Tensor:
    """Error of the predicted class for each example: 0 or 1, shape (n,), in the dtype of the logits."""
    logits = _logits(outputs)
    return (logits.argmax(dim=-1) != _targets(batch)).to(logits.dtype)


class EmpiricalRisk:
    r"""Mean loss over a fixed data set, :math:`L(\theta) = \frac1N \sum_{i=1}^N \ell_i(\theta)`.

    Every example weighs the same, also in a ragged last batch. The model is never written to: it is evaluated
    through `torch.func.functional_call` at the vector asked for, in eval mode (no dropout, frozen batch
    statistics), and with the attention kernel that has second derivatives. Modes are put back afterwards.

    Args:
        model: Model that returns logits, or a Hugging Face output with ``.logits``.
        batches: ``(inputs, targets)`` pairs, or mappings passed as keyword arguments without ``labels``.
            Any iterable of finite length (a data loader, say) is read once and kept.
        loss: ``loss(outputs, batch)`` returning one loss per example, shape (n,). Default: `cross_entropy`.
        params: Weights that form :math:`\theta`; see `landscape.params.select_parameters`.
        dtype: Precision of the evaluation. Default: the model's own, or float32 for half-precision models.

    Raises:
        ValueError: No batches, an empty batch, or no parameter selected.

    >>> model = nn.Linear(2, 3, bias=False)
    >>> risk = EmpiricalRisk(model, [(torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))])
    >>> round(risk.loss(), 4)  # log 3
    1.0986
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        loss: PerExampleLoss | None = None,
        params: ParameterFilter | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        selected = select_parameters(model, params)
        own = next(iter(selected.values())).dtype
        self.dtype = dtype or (torch.float32 if own in _LOW_PRECISION else own)
        names = tuple(selected)
        if any(p.dtype != self.dtype for p in model.parameters() if p.is_floating_point()):
            model = copy.deepcopy(model).to(self.dtype)
            selected = select_parameters(model, names)
        self.model = model
        self.layout = Layout(names, tuple(p.shape for p in selected.values()))
        self.device = next(iter(selected.values())).device
        self.batches: list[Batch] = [_to(batch, self.device, self.dtype) for batch in batches]
        if not self.batches:
            raise ValueError("batches: expected at least one batch, got none")
        self.batch_sizes = tuple(_batch_size(batch) for batch in self.batches)
        if 0 in self.batch_sizes:
            raise ValueError(f"batches: batch {self.batch_sizes.index(0)} has no examples")
        self._loss = loss or cross_entropy

    @property
    def num_params(self) -> int:
        """Number n of weights in theta."""
        return self.layout.size

    @property
    def num_examples(self) -> int:
        """Number N of examples in the data set."""
        return sum(self.batch_sizes)

    @property
    def theta(self) -> Tensor:
        """Copy of the selected weights as one vector (n,)."""
        state = dict(self.model.named_parameters())
        return self.layout.join({name: state[name].detach() for name in self.layout.names}).clone()

    def batch_losses(self, batch: Batch, parameters: Mapping[str, Tensor]) -> Tensor:
        """Losses (n,) of one batch at the given weights, differentiable to any order in them.

        Raises:
            ValueError: The loss function did not return one value per example.
        """
        frozen: dict[str, Tensor] = {name: p.detach() for name, p in self.model.named_parameters()}
        frozen |= {name: b.detach().clone() for name, b in self.model.named_buffers()}
        if isinstance(batch, Mapping):
            args: tuple[Any, ...] = ()
            kwargs = {key: value for key, value in batch.items() if key != "labels"}
        else:
            args, kwargs = (batch[0],), {}
        with _measuring(self.model):
            outputs = functional_call(self.model, frozen | dict(parameters), args, kwargs)
            losses = self._loss(outputs, batch)
        if losses.shape != (_batch_size(batch),):
            raise ValueError(
                f"loss: expected one loss per example, shape ({_batch_size(batch)},), got {tuple(losses.shape)}; "
                "use reduction='none'"
            )
        return losses

    def loss(self, theta: Tensor | None = None) -> float:
        """L at ``theta`` (n,), by default at the model's own weights. Summed in float64."""
        return float(self.per_example_losses(theta).double().mean())

    @torch.no_grad()
    def per_example_losses(self, theta: Tensor | None = None) -> Tensor:
        """Losses (N,) of all examples, in the order of the batches."""
        parameters = self.layout.split(self.theta if theta is None else theta)
        return torch.cat([self.batch_losses(batch, parameters) for batch in self.batches])

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """Gradient of L (n,); zero for weights that the loss does not use."""
        return self.loss_and_gradient(theta)[1]

    def loss_and_gradient(self, theta: Tensor | None = None) -> tuple[float, Tensor]:
        """L and its gradient (n,) from one forward and one backward pass over the data."""
        point = (self.theta if theta is None else theta.detach().clone()).requires_grad_()
        total, gradient = 0.0, torch.zeros_like(point, requires_grad=False)
        with torch.enable_grad():
            for batch in self.batches:
                summed = self.batch_losses(batch, self.layout.split(point)).sum()
                total += float(summed.detach().double())
                gradient += torch.autograd.grad(summed, point)[0]
        return total / self.num_examples, gradient / self.num_examples


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Eval mode and an attention kernel with second derivatives; the modules' modes are put back."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module in training:
            module.training = True


def _logits(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def _targets(batch: Batch) -> Tensor:
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise ValueError(f"batches: a mapping needs 'labels', got the keys {sorted(batch)}")
        return batch["labels"]
    return batch[1]


def _batch_size(batch: Batch) -> int:
    parts = batch.values() if isinstance(batch, Mapping) else batch
    for part in parts:
        if isinstance(part, Tensor):
            return part.shape[0]
    raise ValueError(f"batches: expected tensors with one row per example, got {type(batch).__name__} without any")


def _to(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    def move(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        return part.to(device, dtype if part.is_floating_point() else None)

    if isinstance(batch, Mapping):
        return {key: move(part) for key, part in batch.items()}
    return tuple(move(part) for part in batch)
