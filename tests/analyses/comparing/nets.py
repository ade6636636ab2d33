"""Small networks of a user's own, their data, and settings that take moments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

QUICK: dict[str, Any] = {
    "radii": [0.1],
    "worst_case": {"steps": 3, "restarts": 1, "screened": 4, "max_passes": 1, "average_samples": 2},
    "curvature": {"k": 1},
    "spectrum": {"trace_matvecs": 30, "density_steps": 3, "density_probes": 2},
    "path_points": 3,
    "curve_steps": 2,
    "plane_points": 3,
}


def network() -> nn.Module:
    """What the factory of a state dictionary makes."""
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))
        return logits


def minimum_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return network()


def examples() -> list[tuple[Tensor, Tensor]]:
    """Twelve examples in batches of seven and five."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(12, 4, generator=generator), torch.arange(12) % 3
    return [(inputs[:7], targets[:7]), (inputs[7:], targets[7:])]


def with_test() -> dict[str, Any]:
    """The same with test examples, as a function of the user's may return them."""
    return {"train": examples(), "test": examples()[:1]}


def not_callable() -> str:
    return "no batches"


def breaking() -> None:
    raise KeyError("gone")
