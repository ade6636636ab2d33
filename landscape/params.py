"""Which parameters of a model span the space under study, and how they are laid out in one flat vector."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod

import torch
from torch import Tensor, nn

ParameterFilter = Callable[[str], bool] | str | Sequence[str]
"""A predicate on parameter names, a regular expression (searched in the name), or the exact names."""


@dataclass(frozen=True)
class Layout:
    """Positions of named tensors in one flat vector of length ``size``.

    The order of ``names`` is the order in the vector; every tensor is flattened row by row. A filter is what makes one
    output unit: a slice along the first axis, or along the second in the tensors named by ``transposed``, of the inputs
    of its own group where ``groups`` gives their number.

    >>> layout = Layout(("a", "b"), (torch.Size([2, 2]), torch.Size([3])))
    >>> layout.size
    7
    >>> layout.split(torch.arange(7.0))["b"]
    tensor([4., 5., 6.])
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    transposed: frozenset[str] = frozenset()
    groups: Mapping[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each tensor."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """Length n of the flat vector."""
        return sum(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Position of the first entry of each tensor in the flat vector."""
        return (0, *accumulate(self.sizes))[:-1]

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """View a flat vector (n,) as its named tensors.

        Raises:
            ValueError: ``vector`` is not of shape (n,).
        """
        if not isinstance(vector, Tensor) or vector.shape != (self.size,):
            got = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
            raise ValueError(
                f"vector: expected shape ({self.size},), one entry per selected weight, got {got}"
                + ("; join named tensors by layout.join" if isinstance(vector, Mapping) else "")
            )
        chunks = vector.split(list(self.sizes))
        return {name: chunk.view(shape) for name, chunk, shape in zip(self.names, chunks, self.shapes, strict=True)}

    def leaves(self, vector: Tensor) -> dict[str, Tensor]:
        """Copies of the tensors, each to be differentiated in by itself.

        Derivatives in the parts of one vector would first be joined to a vector, which takes memory of its size.
        """
        return {name: part.detach().clone().requires_grad_() for name, part in self.split(vector).items()}

    def views(self, vector: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of a vector themselves, not copies, each to be differentiated in by itself."""
        return {name: part.detach().to(dtype).requires_grad_() for name, part in self.split(vector).items()}

    @contextmanager
    def adding_to(self, sums: Tensor, leaves: Mapping[str, Tensor]) -> Iterator[None]:
        """Let a backward pass add the derivatives in the leaves to a vector (n,); none of them waits for the others."""
        for name, place in self.split(sums).items():
            leaves[name].grad = place
        try:
            yield
        finally:
            for leaf in leaves.values():
                leaf.grad = None

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Flatten named tensors into one vector (n,); the inverse of `split`."""
        return torch.cat([tensors[name].reshape(-1) for name in self.names])

    def filter_norms(self, vector: Tensor) -> dict[str, Tensor]:
        """For every tensor with two axes or more the l2 norm of each entry's own filter, float64 in its shape.

        >>> layout = Layout(("w",), (torch.Size([2, 2]),), frozenset({"w"}))
        >>> layout.filter_norms(torch.tensor([3.0, 0.0, 4.0, 2.0]))["w"]
        tensor([[5., 2.],
                [5., 2.]], dtype=torch.float64)
        """
        norms = {}
        for name, tensor in self.split(vector).items():
            if tensor.ndim > 1:
                output = 2 if name in self.transposed else 1
                apart = tensor.double().unflatten(0, (self.groups.get(name, 1), -1))
                others = [axis for axis in range(1, apart.ndim) if axis != output]
                own = torch.linalg.vector_norm(apart, dim=others, keepdim=True)
                norms[name] = own.expand_as(apart).flatten(0, 1)
        return norms

    def num_filters(self, name: str) -> int:
        """How many filters a tensor of two axes or more has."""
        shape = self.shapes[self.names.index(name)]
        return self.groups.get(name, 1) * shape[1] if name in self.transposed else shape[0]


def weight_groups(model: nn.Module) -> dict[str, int]:
    """Groups of the transposed convolutions with several, whose weights do not tell them, by the weight's name."""
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return {
        f"{name}.weight" if name else "weight": module.groups
        for name, module in model.named_modules()
        if isinstance(module, kinds) and module.groups > 1
    }


def transposed_weights(model: nn.Module) -> frozenset[str]:
    """Names of the weights whose second axis counts the outputs: transposed convolutions, and GPT-2's Conv1D."""
    return frozenset(
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
        or (type(module).__name__ == "Conv1D" and hasattr(module, "nf"))
    )


def select_parameters(model: nn.Module, params: ParameterFilter | None = None) -> dict[str, nn.Parameter]:
    """Name the parameters of ``model`` that span the studied space; tied weights count once.

    Args:
        model: Any module.
        params: Predicate on names, regular expression searched in the names, or exact names; any name of a tied weight
            counts.
            ``None`` takes every parameter that requires a gradient.

    Returns:
        Selected parameters in the model's own order.

    Raises:
        ValueError: Nothing is selected, an exact name does not exist, or the regular expression is none.
    """
    named = dict(model.named_parameters())
    every = dict(model.named_parameters(remove_duplicate=False))  # tied weights have several names
    if params is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        wanted = "parameters with requires_grad=True"
    else:
        if isinstance(params, nn.Module):
            raise ValueError(
                f"params: expected names, a regular expression or a predicate on names, got a {type(params).__name__}; "
                "name the module's weights, r'^encoder\\.' say"
            )
        if callable(params):
            try:
                accepted = [name for name in every if params(name)]
            except TypeError as error:
                raise ValueError(f"params: expected a predicate on names, a function of one text: {error}") from error
            wanted = "parameters accepted by the filter"
        elif isinstance(params, str):
            accepted = [name for name in every if _compiled(params).search(name)]
            wanted = f"parameters whose name matches {params!r}"
        else:
            accepted = list(params) if isinstance(params, Iterable) else [params]
            if not all(isinstance(name, str) for name in accepted):
                wrong = next(name for name in accepted if not isinstance(name, str))
                raise ValueError(
                    "params: expected names, a regular expression or a predicate on names, got "
                    f"{type(wrong).__name__}s; name them as model.named_parameters() does"
                )
            wanted = "named parameters"
            missing = sorted(set(accepted) - every.keys())
            if missing:
                near = difflib.get_close_matches(missing[0], every, 1)
                meant = f"did you mean {near[0]!r}? It" if near else "it"
                raise ValueError(f"params: the model has no parameter {missing[0]!r}; {meant} has {_some(named)}")
        ids = {id(every[name]) for name in accepted}
        chosen = {name: p for name, p in named.items() if id(p) in ids}
    if not chosen:
        raise ValueError(f"params: expected {wanted}, found none; the model has {_some(named)}")
    return chosen


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        fix = "; write '.*' for the '*' of file names" if "*" in pattern else ""
        raise ValueError(f"params: {pattern!r} is no regular expression: {error}{fix}") from None


def _some(named: Mapping[str, object], limit: int = 5) -> str:
    names = ", ".join(list(named)[:limit])
    return f"{names} … ({len(named)} in all)" if len(named) > limit else names or "no parameters"
