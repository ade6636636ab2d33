"""Vectors that wait on disk: the same numbers, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from landscape import EmpiricalRisk, sharpness_curve
from landscape.memory import free_bytes
from landscape.sharpness.shelf import Shelf
from tests.landscape.conftest import ENCODER, tiny_vit


def test_vectors_that_wait_on_disk_give_the_same_numbers(digit_batches: list[dict[str, Tensor]]) -> None:
    risk = EmpiricalRisk(tiny_vit(), digit_batches, params=ENCODER)
    effort = {"steps": 14, "restarts": 4, "screened": 6, "max_passes": 1}
    one, other = (sharpness_curve(risk, [0.2, 0.5], storage=storage, **effort) for storage in ("memory", "disk"))
    for kept, written in zip(one, other, strict=True):
        assert torch.equal(kept.epsilon, written.epsilon) and kept.start_losses == written.start_losses
        assert kept.num_passes == written.num_passes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_shelf_gives_back_the_bits_and_leaves_no_file(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    vector = torch.randn(1000, dtype=torch.float64).to(dtype)
    kept = Shelf("disk").put(vector)
    assert torch.equal(kept(), vector) and torch.equal(kept(), vector)
    assert not list(tmp_path.iterdir())


def test_a_shelf_turns_to_the_disk_where_memory_is_short() -> None:
    free = free_bytes(torch.device("cpu"))
    assert Shelf("auto", free // 10).storage == "memory" and Shelf("auto", free).storage == "disk"
