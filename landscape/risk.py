"""The function under study: the mean loss over a data set as a function of a flat vector of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape.batches import (
    batch_size,
    call_arguments,
    map_tensors,
    read_batches,
    refuse_no_batch,
    to_device,
)
from landscape.checks import check_batches, check_deterministic, check_labels, check_loss, check_model, check_numbers
from landscape.distributed import Group, Ranks
from landscape.evaluation import (
    exact_products,
    expect_gradients,
    measuring,
    random_numbers_kept,
    renormed_embeddings,
    written_parameters,
)
from landscape.losses import Batch, LabelLoss, PerExampleLoss, ValueLoss, cross_entropy, targets_of
from landscape.params import Layout, ParameterFilter, select_parameters, transposed_weights, weight_groups
from landscape.slopes import check_gradient
from landscape.torch_losses import TorchLoss, per_example

_LOW_PRECISION = (torch.float16, torch.bfloat16)


class EmpiricalRisk:
    r"""Mean loss over a fixed data set, :math:`L(\theta) = \sum_i w_i\,\ell_i(\theta) / \sum_i w_i`.

    Every example weighs the same (:math:`w_i = 1`), also in a ragged last batch; with labels of -100 to leave out, or
    one label a token, every label that counts weighs the same.

    The model is never written to, nor copied: it is evaluated through `torch.func.functional_call` at the vector asked
    for, in eval mode (no dropout, frozen batch statistics), and with the attention kernel that has second derivatives.
    Modes and whatever modules keep on themselves are put back afterwards. All its other weights and buffers, and
    `theta`, are the model's at the time of the call, whatever the precision; only operators keep a point of their own.

    In a `torch.distributed` process group every rank holds its own part of the data, and losses, gradients and
    curvature products are those of the whole: all ranks have to take the same measurements. One that measures alone,
    on all of the data, says so with ``group=None``.

    Args:
        model: Model that returns logits, or a Hugging Face output with ``.logits``.
        batches: ``(inputs, targets)`` pairs, the inputs a tensor or a mapping of keyword arguments, or mappings
            passed as keyword arguments without ``labels``. Any iterable of finite length (a data loader, say) is
            read once and kept where it lies; batches on another device than the model's are copied when used.
        loss: ``loss(outputs, batch)`` returning one loss per example, shape (n,), and optionally
            ``loss.weights(batch)`` returning their weights (n,). Default: `landscape.losses.cross_entropy`, unless a
            model that computes its own loss from ``labels`` disagrees.
        params: Weights that form :math:`\theta`; see `landscape.params.select_parameters`.
        dtype: Precision of the evaluation. Default: the model's own, or float32 for half-precision models.
        l2: Weight c of a penalty :math:`c\,\|\theta\|_2^2`, part of every example's loss; a loss function of one's own
            must not read the model's parameters.
        group: Processes that share the data; see `landscape.distributed.Ranks`.
        check: Evaluate the first batch a few times and refuse a model that is not deterministic, another loss than
            the model's own by default, or a gradient that is not the loss's derivative.

    Attributes:
        ranks: The processes that share the data.
        consistent: Kinds of curvature operators whose second derivatives have been checked, and over which weights;
            under the kind of the risk itself, of its first ones.
        expect_used: Whether a loss that uses none of the weights is refused; that of a part of the data need not.

    Raises:
        ValueError: A wrapped or scripted model, no batches, an empty batch, a loader that drops examples, no parameter
            selected, a model that is not deterministic, labels that the loss misreads, or a default loss that is not
            the model's own.

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
        l2: float = 0.0,
        group: Group = "all",
        check: bool = True,
    ) -> None:
        expect_gradients()
        check_model(model, l2)
        self.l2 = l2
        self.ranks = Ranks(group)
        selected = select_parameters(model, params)
        own = next(iter(selected.values())).dtype
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype: expected a floating type of torch's, torch.float64 say, got {dtype!r}")
        if dtype in _LOW_PRECISION:
            raise ValueError(
                f"dtype: expected torch.float32 or torch.float64, whose rounding is not the result, got {dtype}"
            )
        if whole := [
            name for name, weight in selected.items() if not (weight.is_floating_point() or weight.is_complex())
        ]:
            raise ValueError(
                f"params: {whole[0]} holds numbers of {selected[whole[0]].dtype}, in which no loss has derivatives; "
                "leave it out by params"
            )
        if turned := [name for name, weight in selected.items() if weight.is_complex()]:
            raise ValueError(
                f"params: {turned[0]} is complex, and the mean loss is taken as a function of real numbers; "
                "choose real weights by params, or store real and imaginary parts as weights of their own"
            )
        self.dtype = dtype or (torch.float32 if own in _LOW_PRECISION else own)
        self.model = model
        self.consistent: set[tuple[type, tuple[str, ...]]] = set()
        self.expect_used = True
        shapes = tuple(parameter.shape for parameter in selected.values())
        groups = {name: count for name, count in weight_groups(model).items() if name in selected}
        self.layout = Layout(tuple(selected), shapes, transposed_weights(model).intersection(selected), groups)
        self._renormed = renormed_embeddings(model)
        self._own_state = self._renormed | written_parameters(model)
        if not self._renormed.isdisjoint(selected):
            raise ValueError(
                f"params: {min(self._renormed.intersection(selected))} belongs to an embedding with max_norm, which "
                "rewrites it at every call, so that the loss is no function of it; leave it out or set max_norm=None"
            )
        self.device = next(iter(selected.values())).device
        self.batches: list[Batch] = []
        for index, batch in enumerate(read_batches(batches)):
            refuse_no_batch(batch, index)
            self.batches.append(map_tensors(batch, self._cast))
        if not self.batches and self.ranks.count == 1:
            raise ValueError("batches: expected at least one batch, got none")
        self.batch_sizes = tuple(batch_size(batch) for batch in self.batches)
        if 0 in self.batch_sizes:
            raise ValueError(f"batches: batch {self.batch_sizes.index(0)} has no examples")
        self.loss_function = per_example(loss) or cross_entropy
        self.checked = check
        if check:
            check_numbers(model)
        if check and self.batches:
            with random_numbers_kept():  # a random model is refused below
                check_labels(self)
        self.weights = [self._weights_of(batch, index) for index, batch in enumerate(self.batches)]
        self.total_weight = float(self.ranks.all_sum(self.example_weights.double().sum()))
        if not self.total_weight > 0:
            raise ValueError(
                "batches: no label counts, so there is nothing to average: every label is -100, or of a class of "
                "weight 0; check the labels"
            )
        if check and self.batches:
            with random_numbers_kept():
                check_deterministic(self)
                check_loss(self, is_default=loss is None)
                check_batches(self)
                check_gradient(self)

    def __repr__(self) -> str:
        loss = getattr(self.loss_function, "__name__", type(self.loss_function).__name__)
        name, tensors = type(self.model).__name__, len(self.layout.names)
        return (
            f"EmpiricalRisk({name}: {self.num_params} weights in {tensors} {'tensor' if tensors == 1 else 'tensors'}; "
            f"{self.num_examples} examples in {len(self.batches)} {'batch' if len(self.batches) == 1 else 'batches'}; "
            f"loss {loss}, {str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    def _weights_of(self, batch: Batch, index: int) -> Tensor:
        """How much each example (n,) of a batch weighs."""
        weigh = getattr(self.loss_function, "weights", None)
        if not callable(weigh):
            return torch.ones(batch_size(batch), dtype=self.dtype, device=self.device)
        weights: Tensor = weigh(batch)
        expected = (batch_size(batch),)
        if not isinstance(weights, Tensor) or weights.shape != expected:
            if isinstance(self.loss_function, LabelLoss):
                raise ValueError(
                    f"labels: expected those of {expected[0]} examples in batch {index}, got labels of shape "
                    f"{tuple(targets_of(batch).shape)}"
                )
            got = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
            raise ValueError(f"loss: expected loss.weights(batch) of shape {expected}, one an example, got {got}")
        if not bool((weights.isfinite() & (weights >= 0)).all()):
            raise ValueError(f"loss: expected finite loss.weights(batch) of at least 0, got others in batch {index}")
        return weights.to(self.device, self.dtype)

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
        return self.layout.join({name: self._cast(state[name].detach()) for name in self.layout.names})

    def select(self, params: ParameterFilter) -> EmpiricalRisk:
        """The same data and model over other weights, one layer's say; see `landscape.params.select_parameters`."""
        return self._sibling(self.batches, params, self.ranks.group)

    def on(self, batches: Iterable[Batch], *, check: bool = True) -> EmpiricalRisk:
        """The same model, weights and loss on other data.

        Raises:
            ValueError: As for the risk's own data, unless neither is to be checked.
        """
        return self._sibling(batches, self.layout.names, self.ranks.group, check=check and self.checked)

    def alone_on(self, batches: Iterable[Batch]) -> EmpiricalRisk:
        """The same on other data that this process has for itself."""
        return self._sibling(batches, self.layout.names, None)

    def _sibling(
        self, batches: Iterable[Batch], params: ParameterFilter, group: Group, *, check: bool = False
    ) -> EmpiricalRisk:
        risk = EmpiricalRisk(
            self.model, batches, self.loss_function, params, self.dtype, l2=self.l2, group=group, check=check
        )
        risk.checked = self.checked
        risk.consistent = self.consistent
        return risk

    def outputs(
        self,
        batch: Batch,
        parameters: Mapping[str, Tensor],
        *,
        order: int = 2,
        rest: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """What the model returns for a batch at the given weights, in measuring mode.

        Args:
            batch: One of the batches, on the model's device.
            parameters: Weights by name.
            order: Derivatives that will be taken; up to 1 allows a faster attention kernel.
            rest: The other weights and the buffers; by default the model's at the time of the call.
        """
        args, kwargs = map_tensors(call_arguments(batch), torch.clone)  # a forward pass may change its inputs
        with measuring(self.model, order):
            state = self.state() if rest is None else self._unshared(rest, dict(self.model.named_buffers()))
            return functional_call(self.model, state | dict(parameters), args, kwargs)

    def rest(self) -> dict[str, Tensor]:
        """A copy of all that the loss depends on beside theta; weights without ``requires_grad`` are shared."""
        trained = {name for name, weight in self.model.named_parameters() if weight.requires_grad}
        return {
            name: tensor.clone() if name in trained else tensor
            for name, tensor in self.state().items()
            if name not in self.layout.names
        }

    def state(self) -> dict[str, Tensor]:
        """The model's weights and buffers in the risk's precision."""
        parameters, buffers = dict(self.model.named_parameters()), dict(self.model.named_buffers())
        tensors = {name: self._cast(tensor.detach()) for name, tensor in (parameters | buffers).items()}
        return self._unshared(tensors, buffers)

    def _unshared(self, tensors: Mapping[str, Tensor], buffers: Iterable[str]) -> dict[str, Tensor]:
        """The tensors, with copies of those that a forward pass could write to: buffers and a module's own state."""
        written = self._own_state.union(buffers)
        return {
            name: tensor.clone() if name in written or tensor.is_inference() else tensor
            for name, tensor in tensors.items()
        }

    def _cast(self, tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(self.dtype.to_complex())
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def losses_of(self, outputs: Any, batch: Batch) -> Tensor:
        """Losses (n,) of a batch from the model's outputs, without the penalty.

        Raises:
            ValueError: The loss function did not return one value per example.
        """
        own = not isinstance(self.loss_function, LabelLoss | ValueLoss | TorchLoss)
        losses = self.loss_function(outputs, map_tensors(batch, torch.clone) if own else batch)  # it may write to it
        if not isinstance(losses, Tensor):
            raise ValueError(
                f"loss: expected a tensor of losses, one an example, got {type(losses).__name__}; leave out .item()"
            )
        if losses.shape != (batch_size(batch),):
            raise ValueError(
                f"loss: expected one loss per example, shape ({batch_size(batch)},), got {tuple(losses.shape)}; "
                "use reduction='none'"
            )
        return losses

    def batch_losses(self, batch: Batch, parameters: Mapping[str, Tensor], *, order: int = 2) -> Tensor:
        """Losses (n,) of one batch at the given weights, differentiable in them ``order`` times."""
        batch = to_device(batch, self.device)
        with exact_products():
            losses = self.losses_of(self.outputs(batch, parameters, order=order), batch)
        return losses + self.penalty(parameters) if self.l2 else losses

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        r""":math:`c\,\|\theta\|_2^2` at the given weights."""
        return self.l2 * torch.stack([part.square().sum() for part in parameters.values()]).sum()

    def check_used(self, used: bool) -> None:
        """Refuse a loss that no batch of any process computes from theta.

        Args:
            used: Whether one of this process's batches does.

        Raises:
            ValueError: None of the selected parameters has a gradient path to the loss.
        """
        if self.expect_used and not float(self.ranks.all_sum(torch.tensor(float(used), device=self.device))):
            raise ValueError(
                f"params: the loss has no gradient in any of the {len(self.layout.names)} selected parameters "
                f"({self.layout.names[0]}, …): the model does not use them, detaches them, or the loss is piecewise "
                "constant"
            )

    def loss(self, theta: Tensor | None = None) -> float:
        """L at ``theta`` (n,), by default at the model's own weights. Summed in float64."""
        losses = self.per_example_losses(theta).double() * self.example_weights
        return float(self.ranks.all_sum(losses.sum())) / self.total_weight

    @torch.no_grad()
    def per_example_losses(self, theta: Tensor | None = None) -> Tensor:
        """Losses (N,) of this process's examples, in the order of the batches."""
        parameters = self.layout.views(self.theta if theta is None else theta, self.dtype)
        return self._joined([self.batch_losses(batch, parameters, order=0) for batch in self.batches])

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """Gradient of L (n,); zero for weights that the loss does not use."""
        return self.loss_and_gradient(theta)[1]

    def loss_and_gradient(self, theta: Tensor | None = None) -> tuple[float, Tensor]:
        """L and its gradient (n,) from one forward and one backward pass over the data.

        Raises:
            FloatingPointError: The gradient of a batch is not finite although its loss is.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        gradient = torch.zeros(self.num_params, dtype=self.dtype, device=self.device)
        expect_gradients()
        parameters = self.layout.views(self.theta if theta is None else theta, self.dtype)
        with torch.enable_grad(), exact_products():
            used = False
            for index, (batch, weights) in enumerate(zip(self.batches, self.weights, strict=True)):
                losses = self.batch_losses(batch, parameters, order=1) * weights
                total += losses.detach().double().sum()
                if losses.requires_grad:  # a batch need not use the weights: they may be another one's expert
                    used = True
                    with self.layout.adding_to(gradient, parameters):  # a forward pass may have put its own there
                        torch.autograd.backward(losses.sum(), inputs=list(parameters.values()))
                    if math.isfinite(float(total)):
                        self._check_gradient(gradient, index)
        self.check_used(used)
        loss, gradient = float(self.ranks.all_sum(total)), self.ranks.all_sum(gradient)
        return loss / self.total_weight, gradient.div_(self.total_weight)

    def _check_gradient(self, gradient: Tensor, index: int) -> None:
        """Refuse a gradient that is not finite where the loss is: no step along it means anything."""
        if math.isfinite(float(gradient.sum())):  # one sweep; finite numbers can have a sum that is not
            return
        wrong = [name for name, part in self.layout.split(gradient).items() if not bool(part.isfinite().all())]
        if not wrong:
            return
        raise FloatingPointError(
            f"batches: the loss of batch {index} is finite, but its gradient in {wrong[0]} is not; look for a function "
            "without a derivative there (a square root or norm at 0, a power, a masked softmax) and add a small "
            "constant inside it"
        )
