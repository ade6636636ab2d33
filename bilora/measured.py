"""What is measured of a training: a model, the weights in question, and the spaces that its adapters open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bilora.adapters import PRIMARY
from landscape import EmpiricalRisk, Layout, LowRankSubspace, orthonormal_basis
from landscape.subspaces import Kind

Pair = tuple[Tensor, Tensor]
"""The factors (A, B) of one weight, A (r, in) and B (out, r)."""


@dataclass(frozen=True, repr=False)
class Minimum:
    """A trained model with its adapter merged, and what it was trained from.

    Attributes:
        model: Plain model with merged weights.
        weight_names: The adapted layers' weights, the measured space, in the model's order; all weights where the
            training had no adapter.
        updates: By weight name, merged weight minus pretrained weight, in the weight's own layout; empty where the
            pretrained weights are not known.
        factors: By adapter and weight name, (A, B); empty for methods without adapters.
    """

    model: nn.Module
    weight_names: tuple[str, ...]
    updates: dict[str, Tensor]
    factors: dict[str, dict[str, Pair]]

    def __repr__(self) -> str:
        adapters = f"; adapters {', '.join(sorted(self.factors))}" if self.factors else ""
        return f"Minimum({type(self.model).__name__}: {len(self.weight_names)} measured tensors{adapters})"

    def risk(self, batches: Iterable[Any], **options: Any) -> EmpiricalRisk:
        """Mean loss of the merged model over the adapted weights; options as of `landscape.EmpiricalRisk`."""
        return EmpiricalRisk(self.model, batches, params=list(self.weight_names), **options)

    def subspace(self, layout: Layout, adapter: str = PRIMARY, kind: Kind = "tangent") -> LowRankSubspace:
        """Directions of weight space that an adapter's factors open.

        Args:
            layout: Of the risk, ``risk.layout``.
            adapter: ``primary``, ``auxiliary``, or the name of an adapter of the model's.
            kind: As in `landscape.LowRankSubspace`.

        Raises:
            ValueError: The minimum has no such adapter.
        """
        if adapter not in self.factors:
            raise ValueError(f"adapter: expected one of {sorted(self.factors) or 'none'}, got {adapter!r}")
        return factor_subspace(layout, self.factors[adapter], kind)


def factor_subspace(layout: Layout, factors: Mapping[str, Pair], kind: Kind) -> LowRankSubspace:
    """Subspace that factors (A, B) by weight open: of B's columns, of A's rows, or of both.

    A weight stored as (in, out), as in GPT-2, has the transposed product Aᵀ Bᵀ.
    """
    stored = {name: (b.T, a.T) if name in layout.transposed else (a, b) for name, (a, b) in factors.items()}
    columns = {name: orthonormal_basis(b) for name, (_, b) in stored.items()}
    rows = {name: orthonormal_basis(a.T) for name, (a, _) in stored.items()}
    return LowRankSubspace(layout, columns, rows, kind)
