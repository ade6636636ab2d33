"""Pairing of layers with their own blocks: planted, absent, and where there is nothing to exchange."""

from __future__ import annotations

import pytest
import torch

from analyses.measures.alignment import layer_pairing
from landscape import Layout, LowRankSubspace, orthonormal_basis

LAYERS, SHAPE, RANK = 6, (12, 9), 2


def made_up(*, own: bool, layers: int = LAYERS) -> tuple[LowRankSubspace, torch.Tensor]:
    """Column spaces, and two vectors whose blocks lie in their own layer's space or in the next layer's."""
    generator = torch.Generator().manual_seed(0)
    names = [f"{index}.weight" for index in range(layers)]
    layout = Layout(tuple(names), (torch.Size(SHAPE),) * layers)
    columns = {name: orthonormal_basis(torch.randn(SHAPE[0], RANK, generator=generator)) for name in names}
    rows = {name: orthonormal_basis(torch.randn(SHAPE[1], RANK, generator=generator)) for name in names}
    owners = names if own else [*names[1:], names[0]]
    vectors = [
        layout.join(
            {
                name: columns[owner] @ torch.randn(RANK, SHAPE[1], generator=generator)
                for name, owner in zip(names, owners, strict=True)
            }
        )
        for _ in range(2)
    ]
    return LowRankSubspace(layout, columns, rows, "column"), torch.stack(vectors)


def found(subspace: LowRankSubspace, vectors: torch.Tensor) -> dict[str, float]:
    rows = list(layer_pairing(subspace, vectors, torch.tensor([3.0, 1.0]), seed=0))
    assert {row["layer"] for row in rows} <= {f"{LAYERS} layers of {SHAPE[0]} outputs"}
    return {row["measure"]: row["value"] for row in rows}


def test_blocks_in_their_own_layers_space_are_detected() -> None:
    pairing = found(*made_up(own=True))
    assert pairing["pairing"] == pytest.approx(1, abs=1e-6)
    assert pairing["pairing_p_value"] == pytest.approx(1 / 720)
    assert pairing["pairing_expected"] < 0.5


def test_blocks_in_another_layers_space_are_not() -> None:
    """The spaces hold the blocks of the group as well as before, but not each its own."""
    pairing = found(*made_up(own=False))
    assert pairing["pairing_p_value"] > 0.2
    assert pairing["pairing"] < 0.5


def test_one_layer_has_nothing_to_exchange() -> None:
    assert found(*made_up(own=True, layers=1)) == {}
