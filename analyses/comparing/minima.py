"""Minima side by side: whether they can be compared, in which weights, and what tells them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import Trainer

from analyses.comparing.sources import Reader, read_minimum
from analyses.study import StudyError
from bilora import Minimum, minimum
from bilora.adapters import AUXILIARY, PRIMARY
from landscape import select_parameters
from landscape.params import ParameterFilter
from landscape.showing import kind_of


@dataclass(frozen=True)
class Minima:
    """Minima of one architecture.

    Attributes:
        by_name: The minima, each with the measured weights as its own.
    """

    by_name: dict[str, Minimum]

    @property
    def names(self) -> list[str]:
        """Names in the order in which they were given."""
        return list(self.by_name)

    @property
    def first(self) -> Minimum:
        """Any of them."""
        return next(iter(self.by_name.values()))

    @cached_property
    def differing(self) -> list[str]:
        """Weights in which two of them differ, in the model's order; all floating ones where none does."""
        first, *others = (dict(found.model.named_parameters()) for found in self.by_name.values())
        floating = [name for name, weight in first.items() if weight.is_floating_point()]
        moved = [name for name in floating if any(not torch.equal(first[name], one[name]) for one in others)]
        return moved or floating

    @cached_property
    def batch_norm(self) -> bool:
        """Whether they keep batch statistics of their own, which a point between them would have to renew."""
        kept = [
            [module.running_mean for module in found.model.modules() if isinstance(module, _BatchNorm)]
            for found in self.by_name.values()
        ]
        first, *others = [[mean for mean in means if mean is not None] for means in kept]
        return any(not torch.equal(a, b) for one in others for a, b in zip(first, one, strict=True))


_TAKEN = ("quantity",)
"""What the tables call a column of their own."""


def gather_minima(given: Mapping[str, Any], params: ParameterFilter | None, reader: Reader) -> Minima:
    """Read or copy all minima, refuse what cannot be compared, and settle the weights that are measured.

    These are the ones that every minimum has as its own, the adapted layers of adapters and all weights of other
    models, or those that ``params`` selects.

    Raises:
        StudyError: There are none, one is no model, holds a number that is not finite, or differs in its architecture.
    """
    if not isinstance(given, Mapping):
        raise StudyError(f"minima: expected models by name, got {kind_of(given)}; pass {{'a': a, 'b': b}}")
    if not given:
        raise StudyError("minima: expected at least one by its name, got none")
    for name in given:
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or name in _TAKEN:
            raise StudyError(
                f"minima: expected names that are texts on one line, other than {', '.join(_TAKEN)}; got {name!r}"
            )
    found = {name: _minimum(name, source, reader) for name, source in given.items()}
    names = list(found)
    for name in names:
        _check_finite(name, found[name].model)
        _check_alike(names[0], found[names[0]].model, name, found[name].model)
        _check_labels_alike(names[0], found[names[0]].model, name, found[name].model)
    measured = _measured(found, params)
    return Minima({name: _narrowed(one, measured) for name, one in found.items()})


def checksum(parts: Iterable[Tensor | str]) -> str:
    """Twelve digits that change with any of the tensors or texts."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(f"{len(part)} {part}".encode())
        else:
            flat = part.detach().cpu().contiguous().reshape(-1)
            found.update(f"{flat.dtype} {tuple(part.shape)}".encode())
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]


def _minimum(name: str, source: Any, reader: Reader) -> Minimum:
    if isinstance(source, Minimum):
        return source
    if isinstance(source, Trainer | nn.Module):
        try:
            return minimum(source)
        except ValueError as error:
            raise StudyError(f"minima[{name!r}]: {error}") from error
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        return read_minimum(str(source), reader)
    raise StudyError(
        f"minima[{name!r}]: expected a model, a trainer, a bilora.Minimum or a place, got {type(source).__name__}"
    )


def _check_finite(name: str, model: nn.Module) -> None:
    for key, tensor in model.named_parameters():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StudyError(f"minima[{name!r}]: {key} holds numbers that are not finite; was the training in order?")


def _check_alike(first: str, model: nn.Module, name: str, other: nn.Module) -> None:
    shapes = [{key: tuple(weight.shape) for key, weight in one.named_parameters()} for one in (model, other)]
    for key in (*shapes[0], *shapes[1]):
        a, b = (one.get(key, "none") for one in shapes)
        if a != b:
            raise StudyError(
                f"minima: expected one architecture; {key} is {a} in {first!r} and {b} in {name!r}. Radii, distances "
                "and paths of two architectures have nothing in common: inspect each alone"
            )


def _check_labels_alike(first: str, model: nn.Module, name: str, other: nn.Module) -> None:
    """Refuse two classifiers that call the same classes by other numbers: one set of labels cannot fit both."""
    known = [getattr(getattr(one, "config", None), "label2id", None) or {} for one in (model, other)]
    if known[0].keys() == known[1].keys() and known[0] != known[1]:
        label = next(key for key, index in known[0].items() if known[1][key] != index)
        raise StudyError(
            f"minima: expected one order of the classes; {label!r} is number {known[0][label]} in {first!r} and "
            f"{known[1][label]} in {name!r} (label2id in config.json), so that labels right for one are wrong for the "
            "other"
        )


def _measured(found: Mapping[str, Minimum], params: ParameterFilter | None) -> tuple[str, ...]:
    first = next(iter(found.values()))
    if params is not None:
        try:
            return tuple(select_parameters(first.model, params))
        except ValueError as error:
            raise StudyError(str(error)) from error
    shared = set.intersection(*(set(one.weight_names) for one in found.values()))
    names = tuple(name for name in first.weight_names if name in shared)
    if not names:
        own = "; ".join(f"{name}: {one.weight_names[0]}, …" for name, one in found.items())
        raise StudyError(f"params: the minima's adapters share no layer ({own}); say which weights to measure")
    return names


def _narrowed(found: Minimum, names: tuple[str, ...]) -> Minimum:
    """The minimum over the measured weights, its one adapter as the primary; factors that do not cover them go."""
    factors = dict(found.factors)
    others = [adapter for adapter in factors if adapter not in (PRIMARY, AUXILIARY)]
    if PRIMARY not in factors and len(others) == 1:
        factors[PRIMARY] = factors.pop(others[0])
    covering = {
        adapter: {name: pairs[name] for name in names}
        for adapter, pairs in factors.items()
        if adapter in (PRIMARY, AUXILIARY) and pairs.keys() >= set(names)
    }
    updates = {name: found.updates[name] for name in names if name in found.updates}
    return replace(found, weight_names=names, updates=updates, factors=covering)
