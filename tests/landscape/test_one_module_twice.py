"""Models that hold a module under two names, or use one layer several times, are measured and left as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape import EmpiricalRisk, HessianOperator, lanczos, loss_line, random_direction, worst_case_sharpness


class Alias(nn.Module):
    """Its last layer is also its head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 3)])
        self.head = self.layers[-1]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.layers[0](x)))
        return logits


def repeated() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 3))


def normed() -> nn.Module:
    norm = nn.BatchNorm1d(6)
    return nn.Sequential(nn.Linear(6, 6), norm, nn.Tanh(), norm, nn.Linear(6, 3))


@pytest.mark.parametrize("make", [Alias, repeated, normed])
@pytest.mark.parametrize("params", [None, "0.weight"])
def test_a_module_of_two_names_keeps_its_weights(make: Callable[[], nn.Module], params: str | None) -> None:
    torch.manual_seed(0)
    model = make().double().eval()
    x, y = torch.randn(30, 6, dtype=torch.float64), torch.randint(0, 3, (30,))
    before, kinds = copy.deepcopy(model.state_dict()), {name: id(p) for name, p in model.named_parameters()}
    risk = EmpiricalRisk(model, [(x[:20], y[:20]), (x[20:], y[20:])], params=params)
    first = lanczos(HessianOperator(risk), 1).eigenvalues
    loss_line(risk, random_direction(risk, seed=0), [-1.0, 0.0, 1.0], chunk=1)
    loss_line(risk, random_direction(risk, seed=0), [-1.0, 0.0, 1.0])
    worst_case_sharpness(risk, 0.1, restarts=1, steps=2, max_passes=4)
    assert {name: id(p) for name, p in model.named_parameters()} == kinds
    assert all(isinstance(p, nn.Parameter) for module in model.modules() for p in module._parameters.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert risk.loss() == pytest.approx(float(F.cross_entropy(model(x), y)), rel=1e-12)
    torch.testing.assert_close(lanczos(HessianOperator(risk), 1).eigenvalues, first)
