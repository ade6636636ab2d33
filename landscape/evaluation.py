"""How a model is called when it is measured: nothing it does to itself lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def measuring(model: nn.Module, order: int) -> Iterator[None]:
    """Eval mode and an attention kernel with the derivatives needed; what modules keep on themselves is put back."""
    # Only the math kernel has second derivatives; on GPUs it is also the one that is deterministic.
    fast = order <= 1 and next(model.parameters()).device.type == "cpu"
    kept = [(module, dict(vars(module)), _containers(module)) for module in model.modules()]
    try:
        for module in model.modules():
            module.training = False
            _differentiate_fully(module)
        kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH] if fast else [SDPBackend.MATH]
        with sdpa_kernel(kernels), exact_products():
            yield
    finally:
        for module, attributes, containers in kept:
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
            for name, content in containers.items():
                vars(module)[name][:] = content


@contextmanager
def exact_products() -> Iterator[None]:
    """Products of matrices and convolutions in the precision of their numbers: GPUs keep 10 bits of float32 in TF32."""
    # Not `allow_tf32`, which torch refuses to read once a user has set the precision by its newer name.
    cudnn: Any = torch.backends.cudnn  # torch's stubs do not know its parts
    kinds: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    kept = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, precision in zip(kinds, kept, strict=True):
            kind.fp32_precision = precision


def _differentiate_fully(module: nn.Module) -> None:
    """Let a table's gradient be the loss's derivative: dense, of every row, and not divided by counts.

    What ``sparse``, ``padding_idx`` and ``scale_grad_by_freq`` do to the gradient helps training; the values are the
    same. What is set here on the module is put back by `measuring`.
    """
    if type(module) is nn.Embedding:

        def forward(input: Tensor) -> Tensor:  # named as torch has it: models may pass it by name
            return F.embedding(input, module.weight, max_norm=module.max_norm, norm_type=module.norm_type)

        module.forward = forward  # type: ignore[method-assign]
    elif isinstance(module, nn.EmbeddingBag):
        module.sparse = module.scale_grad_by_freq = False


def _containers(module: nn.Module) -> dict[str, list[Any]]:
    """Copies of the lists that a module keeps, to which a forward pass may append."""
    return {name: list(value) for name, value in vars(module).items() if type(value) is list}


def renormed_embeddings(model: nn.Module) -> set[str]:
    """Names of the tables that a forward pass rewrites."""
    return {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None
    }
