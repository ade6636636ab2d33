"""What a mean loss must be for derivatives in its weights to mean anything; asked once, of the first batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.func import functional_call
from torch.nn.parameter import UninitializedParameter

from landscape.batches import map_tensors, names_labels, takes_labels, tensors_of, to_device
from landscape.evaluation import measuring
from landscape.graph_nodes import coarser, nodes_of
from landscape.losses import Batch, check_targets
from landscape.torch_losses import TorchLoss

if TYPE_CHECKING:
    from landscape.risk import EmpiricalRisk

_NUDGE, _SEEN = 1e-3, 1e-5
"""Relative change of a weight to which a loss is asked to answer, and of the loss beyond rounding."""
_KINDS = 8
"""Kinds of batches that are tried: of examples of many lengths, say, a few."""
_SAME_LOSS = 1e-3
"""Relative difference to which two ways of computing one loss agree."""


_CHECKPOINTS = (
    "model: it checkpoints activations in eval mode, so that a backward pass would run parts of it again when its own "
    "weights are back; switch that off (gradient_checkpointing_disable())"
)


def check_model(model: nn.Module, l2: float) -> None:
    """Refuse models that cannot be evaluated at other weights than their own, and penalties that are no numbers."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model: expected a torch.nn.Module, got {type(model).__name__}; load a model by its name first, wrap a "
            "function into a module"
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(f"model: expected a plain module, got {type(model).__name__} around one; pass model.module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"model: expected a module in Python, got TorchScript's {type(model).__name__}, which cannot be evaluated "
            "at given weights; pass the module that it was made from"
        )
    empty = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if empty:
        raise ValueError(
            f"model: {empty[0]} is on the meta device and has no values; load the weights onto a device that holds them"
        )
    lazy = [name for name, weight in model.named_parameters() if isinstance(weight, UninitializedParameter)]
    if lazy:
        raise ValueError(f"model: {lazy[0]} has no shape yet; run the model once, so that its lazy modules take theirs")
    if not isinstance(l2, Real) or not math.isfinite(l2):
        raise ValueError(f"l2: expected a finite number, got {l2!r}")


def check_numbers(model: nn.Module) -> None:
    """Refuse weights and buffers that are no numbers (an infinite one may be a mask).

    Raises:
        ValueError: Some are NaN; the message names the tensor.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise ValueError(
                f"model: {int(tensor.isnan().sum())} of the {tensor.numel()} entries of {name} are NaN; the training "
                "that left them diverged"
            )


def first_outputs(risk: EmpiricalRisk, batch: Batch) -> Any:
    """What the model makes of its first batch.

    Raises:
        ValueError: It fails on it.
    """
    try:
        return risk.outputs(batch, risk.layout.split(risk.theta), order=0)
    except (RuntimeError, TypeError, LookupError, AttributeError, AssertionError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        own = next(risk.model.parameters()).dtype
        cast = "" if risk.dtype == own else f" Does it run in {risk.dtype}? It is in {own}; try without dtype"
        raise ValueError(
            f"batches: the model fails on the first batch: {reason}; are shapes, types and names those that its "
            f"forward pass takes?{cast}"
        ) from error


def check_deterministic(risk: EmpiricalRisk) -> None:
    """Two evaluations of the first batch must agree to rounding and draw no random numbers."""
    state = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(risk.device) if risk.device.type == "cuda" else state
    parameters = risk.layout.split(risk.theta)
    with torch.no_grad():
        first, second = (risk.batch_losses(risk.batches[0], parameters, order=0) for _ in range(2))
    if bool(first.isnan().any()):
        torch.set_rng_state(state)
        raise ValueError(
            f"batches: the loss of example {int(first.isnan().nonzero()[0])} of the first batch is NaN; are its inputs "
            "and labels finite?"
        )
    difference = (first - second).abs().max()
    drawn = not torch.equal(state, torch.get_rng_state())
    if risk.device.type == "cuda":
        drawn = drawn or not torch.equal(on_device, torch.cuda.get_rng_state(risk.device))
    if drawn or difference > 1e-5 * first.abs().max():
        torch.set_rng_state(state)
        raise ValueError(
            "model: it draws random numbers in eval mode, or two evaluations of one batch differ (by "
            f"{float(difference):.3g}): the mean loss is not a function of the weights. Switch the random part "
            "off, or pass check=False to measure one draw after another"
        )


@torch.no_grad()
def check_labels(risk: EmpiricalRisk) -> None:
    """The labels must be what the loss takes them for, and no inputs of the model."""
    batch = to_device(risk.batches[0], risk.device)
    decoder_needs = {"decoder_input_ids", "decoder_inputs_embeds"}
    has_decoder = getattr(getattr(risk.model, "config", None), "is_encoder_decoder", False)
    if has_decoder and isinstance(batch, Mapping) and decoder_needs.isdisjoint(batch):
        raise ValueError(
            "batches: a sequence-to-sequence model makes its decoder's inputs from the labels, which it is not "
            "given here; put decoder_input_ids into the batches (prepare_decoder_input_ids_from_labels)"
        )
    outputs = first_outputs(risk, batch)
    check_targets(risk.loss_function, outputs, risk.batches)
    if isinstance(risk.loss_function, TorchLoss):
        risk.loss_function.try_on(outputs, batch)


@torch.no_grad()
def check_batches(risk: EmpiricalRisk) -> None:
    """Batches after the first of other kinds, or with numbers that are not finite, must have a loss all the same.

    Raises:
        ValueError: The model fails on one, or its loss is NaN.
    """
    parameters = risk.layout.split(risk.theta)
    seen: set[str] = set()
    for index, batch in enumerate(risk.batches):
        kind = _kind_of_batch(batch)
        new = index > 0 and kind not in seen and len(seen) < _KINDS
        seen.add(kind)
        broken = any(t.is_floating_point() and not bool(_entries(t).isfinite().all()) for t in tensors_of(batch))
        if not new and not broken:
            continue
        try:
            losses = risk.batch_losses(batch, parameters, order=0)
        except (RuntimeError, TypeError, LookupError, AttributeError, AssertionError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"batches: the model takes the first and fails on batch {index}: {reason}") from error
        if broken and bool(losses.isnan().any()):
            raise ValueError(
                f"batches: the loss of batch {index} is NaN, and some of its inputs or labels are not finite"
            )


def _entries(tensor: Tensor) -> Tensor:
    """All entries that a tensor stores."""
    if tensor.layout is torch.strided:
        return tensor.values() if tensor.is_nested else tensor
    return tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()


def _kind_of_batch(batch: Batch) -> str:
    """What most batches of a data set share: shapes of an example of real numbers, axes of indices, types."""
    shapes = [
        (tensor.shape[1:] if tensor.is_floating_point() else tensor.ndim, tensor.dtype) for tensor in tensors_of(batch)
    ]
    return f"{[*batch] if isinstance(batch, Mapping) else len(batch)} {shapes}"


@torch.no_grad()
def check_loss(risk: EmpiricalRisk, *, is_default: bool) -> None:
    """The loss must be a function of theta, and the default loss the model's own, where it has one."""
    batch = to_device(risk.batches[0], risk.device)
    parameters = risk.layout.split(risk.theta)
    _check_reads_theta_only(risk, batch)
    if not (is_default and isinstance(batch, Mapping) and takes_labels(risk.model)):
        return
    with measuring(risk.model, 0):
        try:
            outputs = functional_call(risk.model, risk.state() | parameters, (), dict(map_tensors(batch, torch.clone)))
        except (TypeError, RuntimeError, ValueError):
            if names_labels(risk.model):
                raise
            return  # it passes keywords on to somebody who takes no labels
    reported = getattr(outputs, "loss", None)
    if reported is None:
        return
    weights = risk.weights[0].double()
    losses = risk.losses_of(risk.outputs(batch, parameters, order=0), batch)
    ours = float((losses * weights).sum() / weights.sum())
    own = float(reported)
    if abs(ours - own) > _SAME_LOSS * max(abs(ours), abs(own)):
        raise ValueError(
            f"loss: on the first batch the default, cross-entropy of one label an example, is {ours:.4g}, but the "
            f"model's own loss is {own:.4g}. Say which is meant: loss=binary_cross_entropy (several labels an "
            "example), mse (regression), cross_entropy_of(class_weights, label_smoothing=...), "
            "token_cross_entropy, next_token_cross_entropy, a function of (outputs, batch), or cross_entropy "
            "itself"
        )


def _check_reads_theta_only(risk: EmpiricalRisk, batch: Batch) -> None:
    """The loss may depend on the weights only through the vector it is evaluated at, and during the call.

    Raises:
        ValueError: It reads the model's own parameters, or its backward pass would run the model again.
    """
    parameters = risk.layout.leaves(risk.theta)
    own = [weight for weight in risk.model.parameters() if weight.requires_grad]
    message = "checkpointing"
    try:
        with torch.enable_grad(), torch.autograd.graph.disable_saved_tensors_hooks(message):
            total = risk.batch_losses(batch, parameters, order=1).sum()
    except RuntimeError as error:
        if str(error) != message:
            raise
        raise ValueError(_CHECKPOINTS) from None
    nodes = nodes_of(total)
    # Reentrant checkpointing leaves a part that it computed without a graph.
    if any("CheckpointFunction" in node.name() for node in nodes):
        raise ValueError(_CHECKPOINTS)
    _warn_of_lower_precision(risk, nodes)
    if total.requires_grad and own:
        gradients = torch.autograd.grad(total, own, allow_unused=True, retain_graph=True)
        if any(gradient is not None for gradient in gradients):
            raise ValueError(
                "loss: it reads the model's own parameters (a weight penalty?) and not those at which it is "
                "evaluated, so that its derivatives would miss that part; leave it out and pass l2=c for c · |theta|²"
            )
    _check_reached(risk, batch, parameters, total)


@torch.no_grad()
def _check_reached(risk: EmpiricalRisk, batch: Batch, parameters: Mapping[str, Tensor], total: Tensor) -> None:
    """A weight that no gradient reaches may not move the loss.

    Raises:
        ValueError: One does: a part of the model is computed without a graph.
    """
    if not total.requires_grad:
        return
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    unreached = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    generator = torch.Generator().manual_seed(0)
    moved = {}
    for name in unreached:
        weight = parameters[name].detach()
        signs = torch.randint(0, 2, weight.shape, generator=generator).to(weight) * 2 - 1
        moved[name] = weight + _NUDGE * signs * (weight.abs() + 0.1)

    def answers(names: Iterable[str]) -> bool:
        """Whether the loss does when these weights move."""
        there = dict(parameters) | {name: moved[name] for name in names}
        change = risk.batch_losses(batch, there, order=0).sum() - total
        return bool(change.abs() > _SEEN * total.abs())

    if unreached and answers(unreached):
        name = next((name for name in unreached if answers([name])), unreached[0])
        raise ValueError(
            f"model: the loss depends on {name}, but no gradient reaches it: a part of the model is detached, runs "
            "under no_grad or is checkpointed there, so that derivatives would miss it; mend that part, leave it out "
            "by params, or pass check=False to take it as constant"
        )


def _warn_of_lower_precision(risk: EmpiricalRisk, nodes: Iterable[Node]) -> None:
    """Say that parts of the model compute in fewer digits than the risk's: norms of Llama, say, in float32."""
    found = coarser(nodes, risk.dtype)
    if found is not None:
        node, dtype = found
        warnings.warn(
            f"model: a part of it computes in {dtype}, whatever the weights are ({node.name()}), so that losses and "
            f"derivatives in {risk.dtype} are good to the digits of {dtype} only",
            stacklevel=5,
        )
