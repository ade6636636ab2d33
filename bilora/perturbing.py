"""What SAM-type methods do around a pass: moving adapted layers, keeping buffers, and refusing lost perturbations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from landscape.perturbation import perturbed


@contextmanager
def layers_moved(model: nn.Module, layers: Sequence[LoraLinear], epsilons: Sequence[Tensor]) -> Iterator[None]:
    r"""Let adapted layers compute with :math:`W_j + \epsilon_j` inside the block, and nothing else.

    A weight that is the layer's alone is moved in place. One that other modules use too, or whose precision would
    swallow the perturbation (bfloat16 has 8 bits), stays, and :math:`\epsilon_jx` is added to the layer's output.

    Args:
        model: The model, to tell which weights are shared.
        layers: Adapted layers.
        epsilons: One perturbation (out, in) a layer.
    """
    owners = Counter(id(p) for module in _all_modules(model) for p in module._parameters.values() if p is not None)
    weights, moves = [], []
    with ExitStack() as stack:
        for layer, epsilon in zip(layers, epsilons, strict=True):
            weight = layer.get_base_layer().weight
            if owners[id(weight)] == 1 and is_precise(weight):
                weights.append(weight)
                moves.append(epsilon.T if layer.fan_in_fan_out else epsilon)
            else:
                hook = layer.register_forward_hook(lambda _, args, out, e=epsilon: out + _product(args[0], e).to(out))
                stack.callback(hook.remove)
        stack.enter_context(perturbed(weights, moves))
        yield


def _all_modules(model: nn.Module) -> Iterable[nn.Module]:
    """Every module as often as it has a place: a module at two places shares its weights with itself."""
    return (module for _, module in model.named_modules(remove_duplicate=False))


def _product(inputs: Tensor, epsilon: Tensor) -> Tensor:
    return F.linear(inputs, epsilon.to(inputs))


def is_precise(weight: Tensor) -> bool:
    """Whether a perturbation that is a small share of the weight survives being added to it."""
    return torch.finfo(weight.dtype).eps <= torch.finfo(torch.float32).eps


def check_precise(name: str, weights: Iterable[Tensor]) -> None:
    """Refuse to perturb weights that would swallow it.

    Raises:
        ValueError: A weight's precision is below float32.
    """
    rough = {str(weight.dtype).removeprefix("torch.") for weight in weights if not is_precise(weight)}
    if rough:
        raise ValueError(
            f"model: {name} perturbs weights in {', '.join(sorted(rough))}, which round most of the perturbation away; "
            "load the model in float32 and train with bf16=True (autocast)"
        )


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put back all buffers on the way out, such as the running statistics of batch normalisation."""
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, content in kept:
                buffer.copy_(content)
                module._buffers[name] = buffer


def devices_of(weights: Iterable[Tensor]) -> list[torch.device]:
    """The CUDA devices that weights lie on, whose random numbers count."""
    return list({weight.device for weight in weights if weight.is_cuda})
