"""The function under study: the mean loss over a data set as a function of a flat vector of weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.distributed import all_sum, num_ranks
from landscape.losses import Batch, PerExampleLoss, cross_entropy
from landscape.params import Layout, ParameterFilter, select_parameters

_LOW_PRECISION = (torch.float16, torch.bfloat16)


class EmpiricalRisk:
    r"""Mean loss over a fixed data set, :math:`L(\theta) = \sum_i w_i\,\ell_i(\theta) / \sum_i w_i`.

    Every example weighs the same (:math:`w_i = 1`), also in a ragged last batch; with labels of -100 to leave out, or
    one label a token, every label that counts weighs the same. The model is never written to: it is evaluated
    through `torch.func.functional_call` at the vector asked for, in eval mode (no dropout, frozen batch
    statistics), and with the attention kernel that has second derivatives. Modes are put back afterwards.

    In a `torch.distributed` process group every rank holds its own part of the data, and losses, gradients and
    curvature products are those of the whole.

    Args:
        model: Model that returns logits, or a Hugging Face output with ``.logits``.
        batches: ``(inputs, targets)`` pairs, the inputs a tensor or a mapping of keyword arguments, or mappings
            passed as keyword arguments without ``labels``. Any iterable of finite length (a data loader, say) is
            read once and kept where it lies; batches on another device than the model's are copied when used.
        loss: ``loss(outputs, batch)`` returning one loss per example, shape (n,), and optionally
            ``loss.weights(batch)`` returning their weights (n,). Default: `landscape.losses.cross_entropy`.
        params: Weights that form :math:`\theta`; see `landscape.params.select_parameters`.
        dtype: Precision of the evaluation. Default: the model's own, or float32 for half-precision models.
        check: Evaluate the first batch twice and refuse a model that is not deterministic.

    Raises:
        ValueError: No batches, an empty batch, a loader that drops examples, no parameter selected,
            or a model that is not deterministic.

    >>> model = nn.Linear(2, 3, bias=False)
    >>> risk = EmpiricalRisk(model, [(torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))])
    >>> round(risk.loss(), 4)  # log 3
    1.0986
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        loss: PerExampleLoss | None = None,
        params: ParameterFilter | None = None,
        dtype: torch.dtype | None = None,
        *,
        check: bool = True,
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
        _refuse_dropped_examples(batches)
        state = torch.get_rng_state()  # a data loader draws from the global generator
        self.batches: list[Batch] = [_cast(batch, self.dtype) for batch in batches]
        torch.set_rng_state(state)
        if not self.batches and num_ranks() == 1:
            raise ValueError("batches: expected at least one batch, got none")
        self.batch_sizes = tuple(_batch_size(batch) for batch in self.batches)
        if 0 in self.batch_sizes:
            raise ValueError(f"batches: batch {self.batch_sizes.index(0)} has no examples")
        self.loss_function = loss or cross_entropy
        weigh = getattr(self.loss_function, "weights", lambda batch: torch.ones(_batch_size(batch)))
        self.weights = [weigh(batch).to(self.device, self.dtype) for batch in self.batches]
        self.total_weight = float(all_sum(self.example_weights.double().sum()))
        if not self.total_weight > 0:
            raise ValueError("batches: every label is -100, so there is nothing to average; check the labels")
        if check:
            self._check_deterministic()

    @property
    def num_params(self) -> int:
        """Number n of weights in theta."""
        return self.layout.size

    @property
    def num_examples(self) -> int:
        """Number of examples held by this process."""
        return sum(self.batch_sizes)

    @property
    def example_weights(self) -> Tensor:
        """Weights (N,) of this process's examples in the mean, in the order of the batches; not normalised."""
        return self._joined(self.weights)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Numbers of all examples from those of the batches; a rank of a group may have none."""
        return torch.cat([torch.zeros(0, dtype=self.dtype, device=self.device), *parts])

    @property
    def theta(self) -> Tensor:
        """Copy of the selected weights as one vector (n,)."""
        state = dict(self.model.named_parameters())
        return self.layout.join({name: state[name].detach() for name in self.layout.names}).clone()

    def select(self, params: ParameterFilter) -> EmpiricalRisk:
        """The same data and model over other weights, one layer's say; see `landscape.params.select_parameters`."""
        return EmpiricalRisk(self.model, self.batches, self.loss_function, params, self.dtype, check=False)

    def on(self, batches: Iterable[Batch]) -> EmpiricalRisk:
        """The same model, weights and loss on other data."""
        return EmpiricalRisk(self.model, batches, self.loss_function, self.layout.names, self.dtype, check=False)

    def outputs(self, batch: Batch, parameters: Mapping[str, Tensor], *, order: int = 2) -> Any:
        """What the model returns for a batch at the given weights, in measuring mode.

        Args:
            batch: One of the batches, on the model's device.
            parameters: Weights by name.
            order: Derivatives that will be taken; up to 1 allows a faster attention kernel.
        """
        frozen: dict[str, Tensor] = {name: p.detach() for name, p in self.model.named_parameters()}
        frozen |= {name: b.detach().clone() for name, b in self.model.named_buffers()}
        args, kwargs = call_arguments(batch)
        with _measuring(self.model, order):
            return functional_call(self.model, frozen | dict(parameters), args, kwargs)

    def losses_of(self, outputs: Any, batch: Batch) -> Tensor:
        """Losses (n,) of a batch from the model's outputs.

        Raises:
            ValueError: The loss function did not return one value per example.
        """
        losses = self.loss_function(outputs, batch)
        if losses.shape != (_batch_size(batch),):
            raise ValueError(
                f"loss: expected one loss per example, shape ({_batch_size(batch)},), got {tuple(losses.shape)}; "
                "use reduction='none'"
            )
        return losses

    def batch_losses(self, batch: Batch, parameters: Mapping[str, Tensor], *, order: int = 2) -> Tensor:
        """Losses (n,) of one batch at the given weights, differentiable in them ``order`` times."""
        batch = to_device(batch, self.device)
        return self.losses_of(self.outputs(batch, parameters, order=order), batch)

    def check_differentiable(self, losses: Tensor) -> None:
        """Refuse losses computed from a theta that requires a gradient but not depending on it.

        Raises:
            ValueError: None of the selected parameters has a gradient path to the loss.
        """
        if not losses.requires_grad:
            raise ValueError(
                f"params: the loss has no gradient in any of the {len(self.layout.names)} selected parameters "
                f"({self.layout.names[0]}, …): the model does not use them, detaches them, or the loss is piecewise "
                "constant"
            )

    def loss(self, theta: Tensor | None = None) -> float:
        """L at ``theta`` (n,), by default at the model's own weights. Summed in float64."""
        losses = self.per_example_losses(theta).double() * self.example_weights
        return float(all_sum(losses.sum())) / self.total_weight

    @torch.no_grad()
    def per_example_losses(self, theta: Tensor | None = None) -> Tensor:
        """Losses (N,) of this process's examples, in the order of the batches."""
        parameters = self.layout.split(self.theta if theta is None else theta)
        return self._joined([self.batch_losses(batch, parameters, order=0) for batch in self.batches])

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """Gradient of L (n,); zero for weights that the loss does not use."""
        return self.loss_and_gradient(theta)[1]

    def loss_and_gradient(self, theta: Tensor | None = None) -> tuple[float, Tensor]:
        """L and its gradient (n,) from one forward and one backward pass over the data.

        Raises:
            FloatingPointError: The gradient of a batch is not finite although its loss is.
        """
        point = (self.theta if theta is None else theta.detach().clone()).requires_grad_()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        gradient = torch.zeros_like(point, requires_grad=False)
        with torch.enable_grad():
            for index, (batch, weights) in enumerate(zip(self.batches, self.weights, strict=True)):
                losses = self.batch_losses(batch, self.layout.split(point), order=1) * weights
                self.check_differentiable(losses)
                total += losses.detach().double().sum()
                part = torch.autograd.grad(losses.sum(), point)[0]
                self._check_gradient(part, losses, index)
                gradient += part
        return float(all_sum(total)) / self.total_weight, all_sum(gradient) / self.total_weight

    def _check_gradient(self, gradient: Tensor, losses: Tensor, index: int) -> None:
        """Refuse a gradient that is not finite where the loss is: no step along it means anything."""
        if bool(gradient.isfinite().all()) or not bool(losses.isfinite().all()):
            return
        name = next(name for name, part in self.layout.split(gradient).items() if not bool(part.isfinite().all()))
        raise FloatingPointError(
            f"batches: the loss of batch {index} is finite, but its gradient in {name} is not; look for a function "
            "without a derivative there (a square root or norm at 0, a power, a masked softmax) and add a small "
            "constant inside it"
        )

    def _check_deterministic(self) -> None:
        """Two evaluations of the first batch must agree to rounding and draw no random numbers."""
        if not self.batches:
            return
        state = torch.get_rng_state()
        parameters = self.layout.split(self.theta)
        with torch.no_grad():
            first, second = (self.batch_losses(self.batches[0], parameters, order=0) for _ in range(2))
        difference = (first - second).abs().max()
        if not torch.equal(state, torch.get_rng_state()) or difference > 1e-5 * first.abs().max():
            torch.set_rng_state(state)
            raise ValueError(
                "model: it draws random numbers in eval mode, or two evaluations of one batch differ (by "
                f"{float(difference):.3g}): the mean loss is not a function of the weights. Switch the random part "
                "off, or pass check=False to measure one draw after another"
            )


@contextmanager
def _measuring(model: nn.Module, order: int) -> Iterator[None]:
    """Eval mode and an attention kernel with the derivatives needed; the modules' modes are put back."""
    # Only the math kernel has second derivatives; on GPUs it is also the one that is deterministic.
    fast = order <= 1 and next(model.parameters()).device.type == "cpu"
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH] if fast else SDPBackend.MATH):
            yield
    finally:
        for module in training:
            module.training = True


def call_arguments(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments with which a model is called on a batch."""
    if isinstance(batch, Mapping):
        return (), {key: value for key, value in batch.items() if key != "labels"}
    return ((), dict(batch[0])) if isinstance(batch[0], Mapping) else ((batch[0],), {})


def _batch_size(batch: Batch) -> int:
    for part in _tensors(batch):
        return part.shape[0]
    raise ValueError(f"batches: expected tensors with one row per example, got {type(batch).__name__} without any")


def _tensors(part: Any) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from _tensors(value)
    elif isinstance(part, (tuple, list)):
        for value in part:
            yield from _tensors(value)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``; those that are there already are not copied."""
    moved: Batch = _map(batch, lambda tensor: tensor.to(device, non_blocking=True))
    return moved


def _cast(batch: Batch, dtype: torch.dtype) -> Batch:
    cast: Batch = _map(batch, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return cast


def _map(part: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(part, Tensor):
        return function(part)
    if isinstance(part, Mapping):
        return {key: _map(value, function) for key, value in part.items()}
    if isinstance(part, (tuple, list)):
        return tuple(_map(value, function) for value in part)
    return part


def _refuse_dropped_examples(batches: Any) -> None:
    if not (getattr(batches, "drop_last", False) and hasattr(batches, "dataset")):
        return
    examples, size = len(batches.dataset), batches.batch_size
    if size and examples % size:
        raise ValueError(
            f"batches: the data loader has drop_last=True and would leave out {examples % size} of {examples} "
            "examples; use drop_last=False (a ragged last batch is weighted rightly)"
        )
