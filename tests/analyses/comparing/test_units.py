"""The unit of losses that are compared: of a cross-entropy, of squared errors, of a loss of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.comparing import compare
from landscape.losses import mse
from reports.comparison.page import write_comparison

pytestmark = pytest.mark.usefixtures("svg_alone")


def absolute(outputs: Any, batch: Any) -> Tensor:
    return F.l1_loss(outputs, batch[1], reduction="none").mean(dim=1)


@pytest.mark.parametrize(
    ("loss", "unit"),
    [
        (None, "nats"),
        (nn.CrossEntropyLoss(), "nats"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), "nats"),
        (nn.MSELoss(), "squared units of the label"),
        (mse, "squared units of the label"),
        (absolute, "units of the loss"),
    ],
)
def test_a_comparison_made_in_memory_states_the_unit_of_its_loss(
    tmp_path: Path, loss: Callable[..., Tensor] | None, unit: str
) -> None:
    torch.manual_seed(0)
    net, other = nn.Linear(4, 3), nn.Linear(4, 3)
    labelled = unit == "nats"
    batch = (torch.randn(8, 4), torch.randint(3, (8,)) if labelled else torch.randn(8, 3))
    found = compare({"a": net, "b": other}, [batch], loss=loss, radii=[0.1], what=["fit", "sharpness"])
    assert found.unit == unit and f"({unit})" in found.plot().get_ylabel()
    page = found.save(tmp_path / "out")
    if loss is None:
        assert write_comparison(tmp_path / "out") == page  # and again from the files alone
    body = page.read_text()
    body = body[body.index("<body") :]
    assert unit in body and (labelled or " nats" not in body)
