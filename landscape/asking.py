"""Arguments of the wrong kind, answered with the right one before any work."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from landscape.risk import EmpiricalRisk
from landscape.showing import kind_of


def expect_risk(risk: Any) -> None:
    """Refuse what is no `EmpiricalRisk`.

    Raises:
        ValueError: It is none; the message says how to make one.
    """
    if isinstance(risk, EmpiricalRisk):
        return
    fix = "make one: EmpiricalRisk(model, batches)"
    if hasattr(risk, "matvec"):
        fix = "pass the risk that the operator was made from"
    raise ValueError(f"risk: expected an EmpiricalRisk, got {kind_of(risk)}; {fix}")


def expect_vector(name: str, vector: Any, size: int) -> None:
    """Refuse what is no vector (n,) of the risk's weights.

    Raises:
        ValueError: It is none.
    """
    if isinstance(vector, Tensor) and vector.shape == (size,):
        return
    got = f"shape {tuple(vector.shape)}" if isinstance(vector, Tensor) else kind_of(vector)
    fix = ""
    if isinstance(vector, Mapping):
        fix = "; pass risk.layout.join(tensors by name)"
    elif isinstance(vector, nn.Module):
        fix = "; pass risk.layout.join(dict(model.named_parameters())), or that model's own risk.theta"
    elif isinstance(vector, list | tuple):
        fix = "; pass torch.tensor(values)"
    raise ValueError(f"{name}: expected a tensor of shape ({size},), one entry per selected weight, got {got}{fix}")


def expect_floating(name: str, tensor: Any) -> None:
    """Refuse what is no tensor of floating type.

    Raises:
        ValueError: It is none.
    """
    if isinstance(tensor, Tensor) and tensor.is_floating_point():
        return
    got = f"numbers of {tensor.dtype}" if isinstance(tensor, Tensor) else kind_of(tensor)
    fix = "; pass tensor.float()" if isinstance(tensor, Tensor) else "; pass a tensor"
    raise ValueError(f"{name}: expected a tensor of floating type, got {got}{fix}")


def expect_finite(name: str, tensor: Any) -> None:
    """Refuse what is no tensor of floating type, or holds inf or NaN.

    Raises:
        ValueError: It is or does.
    """
    expect_floating(name, tensor)
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name}: expected finite entries, got inf or nan")


def expect_count(name: str, value: Any, *, least: int = 1) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected a count of at least {least}, got {value!r}")


def expect_seed(value: Any) -> None:
    """Refuse what is no whole number from which a generator can be seeded.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"seed: expected a whole number, got {value!r}")


def expect_callable(name: str, function: Any) -> None:
    """Refuse what is neither a function nor None.

    Raises:
        ValueError: It is something else.
    """
    if function is not None and not callable(function):
        raise ValueError(f"{name}: expected a function or None, got {function!r}")


def seeded(seed: Any) -> torch.Generator:
    """A generator on the CPU, seeded by any whole number.

    Raises:
        ValueError: The seed is none.
    """
    expect_seed(seed)
    number = int(seed)  # also numpy's
    return torch.Generator().manual_seed(number if -(2**63) <= number < 2**63 else number % 2**63)


def expect_number(name: str, value: Any, *, instead: str = "") -> None:
    """Refuse what is no real number.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        got = repr(value) if isinstance(value, bool | str) else kind_of(value)
        raise ValueError(f"{name}: expected a number, got {got}{instead}")
