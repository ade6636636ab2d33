"""How a model is called when it is measured: nothing it does to itself lasts."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from operator import is_
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

_ONE_AT_A_TIME = threading.RLock()
"""Held while anything is measured: modes, kernels and precisions are the process's, and sums lie in the leaves."""


@contextmanager
def _nothing_cached() -> Iterator[None]:
    """Parametrised weights are made of theta at every call, in `torch.nn.utils.parametrize.cached` too."""
    cached, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        yield
    finally:
        parametrize._cache_enabled = cached


@contextmanager
def measuring(model: nn.Module, order: int) -> Iterator[None]:
    """Eval mode and an attention kernel with the derivatives needed; what modules keep on themselves is put back."""
    # Only the math kernel has second derivatives; on GPUs it is also the one that is deterministic.
    fast = order <= 1 and next(model.parameters()).device.type == "cpu"
    with _ONE_AT_A_TIME, _nothing_cached():
        yield from _measuring(model, fast)


def _measuring(model: nn.Module, fast: bool) -> Iterator[None]:
    modules = list(model.modules())
    kept = [(module, dict(vars(module)), _containers(module)) for module in modules]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        # In evaluation without gradients it gives padded places other values than with them.
        torch.backends.mha.set_fastpath_enabled(False)
        for module in modules:
            vars(module)["training"] = False  # as nn.Module keeps it; its own setter is ten times slower
            _differentiate_fully(module)
        kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH] if fast else [SDPBackend.MATH]
        with sdpa_kernel(kernels), exact_products(), _whole_gradients(modules):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, attributes, containers in kept:
            if vars(module).keys() != attributes.keys():
                for name in vars(module).keys() - attributes.keys():
                    del vars(module)[name]
            vars(module).update(attributes)
            for container, content in containers:
                _refill(container, content)


def _precisions() -> list[tuple[Any, str, Any]]:
    """Where torch keeps the precision of products: object, attribute, and its value for exact ones."""
    cudnn: Any = torch.backends.cudnn  # torch's stubs do not know its parts
    matmul: Any = torch.backends.cuda.matmul
    try:  # not `allow_tf32`, which torch refuses to read once a user has set the precision by its newer name
        return [(kind, "fp32_precision", "ieee") for kind in (matmul, cudnn.conv, cudnn.rnn)]
    except AttributeError:  # torch before 2.9
        return [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]


_PRECISIONS = _precisions()


@contextmanager
def exact_products() -> Iterator[None]:
    """Products of matrices and convolutions in the precision of their numbers.

    GPUs keep 10 bits of float32 in TF32, and `torch.autocast` would keep 8 to 11: around a measurement, or inside a
    forward pass, where accelerate leaves it in models that were trained with ``bf16=True``.

    Threads that measure take turns: what is set here is the whole process's. Threads that train meanwhile compute
    without autocast, too.
    """
    with _ONE_AT_A_TIME:
        yield from _exactly()


def _exactly() -> Iterator[None]:
    kept, entering = [getattr(kind, name) for kind, name, _ in _PRECISIONS], torch.autocast.__enter__
    try:
        for kind, name, exact in _PRECISIONS:
            setattr(kind, name, exact)
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            torch.autocast.__enter__ = _entered_disabled  # type: ignore[method-assign]
            yield
    finally:
        torch.autocast.__enter__ = entering  # type: ignore[method-assign]
        for (kind, name, _), precision in zip(_PRECISIONS, kept, strict=True):
            setattr(kind, name, precision)


_ENTER = torch.autocast.__enter__


def _entered_disabled(region: torch.autocast) -> Any:
    """Enter a region of autocast as a disabled one; the region itself stays as it is."""
    enabled, region._enabled = region._enabled, False
    try:
        return _ENTER(region)  # type: ignore[no-untyped-call]
    finally:
        region._enabled = enabled


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


def _whole_gradients(modules: Sequence[nn.Module]) -> AbstractContextManager[Any]:
    """The same for classes derived from `nn.Embedding`, whose forward passes are their own."""
    derived = (m for m in modules if isinstance(m, nn.Embedding) and type(m) is not nn.Embedding)
    some = any(m.padding_idx is not None or m.scale_grad_by_freq or m.sparse for m in derived)
    return _PlainEmbedding() if some else nullcontext()


class _PlainEmbedding(TorchFunctionMode):
    """`torch.nn.functional.embedding` without what changes its gradient alone."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is not F.embedding:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("input", "weight", "padding_idx", "max_norm", "norm_type"), args, strict=False))
        given |= {
            key: value for key, value in (kwargs or {}).items() if key in ("input", "weight", "max_norm", "norm_type")
        }
        given.pop("padding_idx", None)
        return func(**given)


_OF_TORCH = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_non_persistent_buffers_set"}
"""What every module has; forward passes may register buffers, and torch's functional call puts back the weights of a
module that has two names as the replacements."""
_UNCHANGEABLE = frozenset({int, float, bool, str, tuple, type(None)})
_LARGE = 2**20
"""Entries of a tensor that is no buffer but kept on a module, above which it is not copied for a forward pass."""
_CONTAINERS = (dict, list, deque, set)
_DEPTH, _MANY = 3, 1000
"""How deep containers within containers are put back, and the entries of one above which only it is."""


def _containers(module: nn.Module) -> list[tuple[Any, Any]]:
    """What a module keeps on itself and a forward pass may change, each beside a copy of its content."""
    found: list[tuple[Any, Any]] = []
    for name, value in vars(module).items():
        if type(value) in _UNCHANGEABLE or name in _OF_TORCH:
            continue
        if name in ("_parameters", "_buffers"):
            found.append((value, value.copy()))
        else:
            _note(value, found, _DEPTH)
    return found


def _note(value: Any, found: list[tuple[Any, Any]], depth: int) -> None:
    """Copy a list, queue, dictionary, set, array or tensor, of a derived class too, and those within it."""
    if type(value) is Tensor:
        if value.numel() <= _LARGE and not value.requires_grad:
            found.append((value, value.clone()))
    elif isinstance(value, np.ndarray):
        if value.size <= _LARGE:
            found.append((value, value.copy()))
    elif isinstance(value, _CONTAINERS):
        content = dict(value) if isinstance(value, dict) else [*value]
        found.append((value, content))
        if depth > 1 and len(content) <= _MANY:
            for inner in content.values() if isinstance(content, dict) else content:
                _note(inner, found, depth - 1)


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, Tensor):
        with torch.no_grad():
            if not torch.equal(container, content):
                container.copy_(content)
    elif isinstance(container, np.ndarray):
        container[...] = content
    elif isinstance(container, dict):
        same = len(container) == len(content) and all(map(is_, container, content))  # keys, in their order
        if not (same and all(map(is_, container.values(), content.values()))):
            container.clear()
            dict.update(container, content)  # a Counter's own adds
    elif len(container) != len(content) or not all(map(is_, container, content)):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(content)


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Put back the global random numbers of torch on the CPU, numpy and Python, also on exceptions."""
    of_torch, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def expect_gradients() -> None:
    """Refuse to measure where torch keeps no graphs.

    Raises:
        ValueError: Inside `torch.inference_mode`.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("risk: derivatives cannot be taken inside torch.inference_mode(); measure outside of it")


_OF_LIBRARIES = ("torch", "transformers", "peft", "bilora")


def written_parameters(model: nn.Module) -> set[str]:
    """Names of frozen weights that a module of the user's own class holds, to which its forward pass may write."""
    return {
        f"{name}.{own}" if name else own
        for name, module in model.named_modules()
        if type(module).__module__.partition(".")[0] not in _OF_LIBRARIES
        for own, parameter in module.named_parameters(recurse=False)
        if not parameter.requires_grad
    }


def renormed_embeddings(model: nn.Module) -> set[str]:
    """Names of the tables that a forward pass rewrites."""
    return {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None
    }
