"""Models whose forward pass chooses a precision, keeps statistics, or reads data made elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape import (
    EmpiricalRisk,
    HessianOperator,
    average_sharpness,
    bezier_path,
    filter_normalize,
    lanczos,
    linear_path,
    losses_at,
    m_sharpness,
    spectral_density,
    worst_case_sharpness,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Inside(nn.Module):
    """Switches autocast on for itself, as models trained in mixed precision do."""

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 32), nn.Linear(32, 3)
        self.region = torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)

    def forward(self, x: Tensor) -> Tensor:
        with self.region:
            return self.b(torch.tanh(self.a(x)))


def test_autocast_inside_a_model_changes_no_number() -> None:
    data = [(torch.randn(32, 5), torch.randint(0, 3, (32,)))]
    mixed = Inside(True)
    plain = Inside(False)
    plain.load_state_dict(mixed.state_dict())
    first, second = (EmpiricalRisk(model, data) for model in (mixed, plain))
    assert first.loss() == second.loss()
    assert worst_case_sharpness(first, 0.01).rise == worst_case_sharpness(second, 0.01).rise
    assert average_sharpness(first, 0.002).rise == average_sharpness(second, 0.002).rise
    eigenvalues = [lanczos(HessianOperator(risk), 1).eigenvalues for risk in (first, second)]
    assert torch.equal(*eigenvalues)
    with torch.no_grad():
        assert not torch.equal(mixed(data[0][0]), plain(data[0][0]))  # and the model is as it was
    assert torch.autocast.__enter__.__qualname__ == "autocast.__enter__"


class Turned(nn.Module):
    """A complex buffer before batch normalisation, and a log that a hook keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.register_buffer("turn", torch.polar(torch.ones(3), torch.arange(3.0)))
        self.log: list[int] = []
        self.first.register_forward_hook(lambda *_: self.log.append(1))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.view_as_real(torch.view_as_complex(self.first(x).unflatten(1, (3, 2))) * self.turn).flatten(1)
        return self.last(torch.tanh(self.norm(turned)))


@pytest.mark.parametrize("autocast", [False, True])
def test_renewed_statistics_are_those_of_a_pass_by_hand_and_leave_no_trace(autocast: bool) -> None:
    model, x, y = Turned(), 0.01 * torch.randn(16, 4) + 3, torch.randint(0, 2, (16,))
    risk = EmpiricalRisk(model, [(x[:8], y[:8]), (x[8:], y[8:])])
    model.log.clear()
    kept, point = {name: t.clone() for name, t in model.state_dict().items()}, risk.theta + 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = losses_at(risk, point[None], batch_norm="recomputed")
    assert model.log == [] and model.training and model.norm.momentum == 0.1
    by_hand = copy.deepcopy(model)
    nn.utils.vector_to_parameters(point, by_hand.parameters())
    by_hand.norm.momentum = None
    by_hand.norm.reset_running_stats()
    by_hand.train()(x[:8]), by_hand(x[8:])
    with torch.no_grad():
        assert float(found) == pytest.approx(float(F.cross_entropy(by_hand.eval()(x), y)), rel=1e-5)
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())


def test_a_filter_of_a_grouped_transposed_convolution_is_that_of_its_group() -> None:
    layer = nn.ConvTranspose1d(4, 4, 3, groups=2)
    risk = EmpiricalRisk(layer, [(torch.randn(5, 4, 6), torch.zeros(5))], lambda o, b: o.flatten(1).square().mean(1))
    direction = risk.layout.split(filter_normalize(torch.randn(risk.num_params), risk.theta, risk.layout))["weight"]
    for group in range(2):
        for output in range(2):
            own = (slice(2 * group, 2 * group + 2), output)
            assert float(direction[own].norm()) == pytest.approx(float(layer.weight[own].detach().norm()), rel=1e-5)

    def rises() -> list[float]:
        scaled = EmpiricalRisk(net, data, lambda outputs, _: outputs.flatten(1).square().mean(1), params=["0.weight"])
        return [
            average_sharpness(scaled, 0.1, scale="filter").rise,
            worst_case_sharpness(scaled, 0.1, adaptive="filter").rise,
        ]

    class Undone(nn.Module):
        factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor([1 / self.factor, 1, 1, 1])[:, None]

    net = nn.Sequential(nn.ConvTranspose1d(4, 4, 3, groups=2, bias=False), Undone())
    data = [(torch.randn(5, 4, 6), torch.zeros(5))]
    before = rises()
    with torch.no_grad():
        net[0].weight[:2, 0] *= 4
        net[1].factor = 4.0
    assert rises() == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [2.0, -3.0, 0.0])
def test_the_density_of_a_multiple_of_the_identity_has_integral_1(dtype: torch.dtype, value: float) -> None:
    x = 8 * torch.linalg.qr(torch.randn(64, 8, dtype=torch.float64)).Q.to(dtype)
    y = torch.randn(64, dtype=dtype)
    net = nn.Linear(8, 1, bias=False).to(dtype)
    risk = EmpiricalRisk(net, [(x, y)], lambda outputs, b: value / 2 * (outputs[:, 0] - b[1]).square())
    found = spectral_density(HessianOperator(risk))
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1, abs=0.01)
    assert found.width == pytest.approx(0.01 * (abs(value) or 1.0), rel=1e-3)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.e[int(row[0] > 0)](row) for row in x])


def test_a_chunk_of_another_expert_does_not_rise() -> None:
    x = torch.tensor([[1.0, 0.3, -1.0], [-1.0, 0.2, 0.4], [-0.5, 1.0, 1.0]])
    risk = EmpiricalRisk(Experts(), [(x, torch.tensor([0, 1, 0]))], params="e.1")
    found = m_sharpness(risk, 0.1, m=1)
    assert sorted(found.rises.gt(0).tolist()) == [False, False, True]
    alone = EmpiricalRisk(risk.model.e[1], [(x[:1], torch.tensor([0]))])
    gradient = alone.gradient()
    rise = alone.loss(alone.theta + 0.1 * gradient / gradient.norm()) - alone.loss()
    assert found.rise == pytest.approx(rise / 3, rel=1e-5)


def test_paths_between_points_of_another_precision() -> None:
    risk = EmpiricalRisk(nn.Linear(3, 2), [(torch.randn(5, 3), torch.randint(0, 2, (5,)))])
    ends = risk.theta, risk.theta + 1
    for dtype in (torch.float64, torch.bfloat16):
        given = [end.to(dtype) for end in ends]
        expected = [end.float() for end in given]
        assert torch.equal(linear_path(risk, *given).losses, linear_path(risk, *expected).losses)
        curves = [bezier_path(risk, *pair, steps=3).path.losses for pair in (given, expected)]
        assert torch.equal(*curves)


def test_sparse_inputs_and_tensors_of_inference_mode_are_data_as_others() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, a: Tensor) -> Tensor:
            return torch.sparse.mm(a, self.layer(x)) if a.is_sparse else a @ self.layer(x)

    net, x, a, y = Graph(), torch.randn(4, 3), torch.eye(4) + torch.eye(4).roll(1, 0), torch.tensor([0, 1, 1, 0])
    with torch.inference_mode():
        made = x * 1
    values = [
        lanczos(HessianOperator(EmpiricalRisk(net, [{"x": inputs, "a": matrix, "labels": y}])), 1).eigenvalues
        for inputs, matrix in ((x, a), (x, a.to_sparse()), (made, a))
    ]
    torch.testing.assert_close(values[1], values[0])
    assert torch.equal(values[2], values[0])
    with torch.inference_mode(), pytest.raises(ValueError, match="outside of it"):
        EmpiricalRisk(net, [{"x": x, "a": a, "labels": y}])


def test_class_probabilities_of_pixels_are_refused_for_what_they_are() -> None:
    data = [(torch.randn(5, 1, 3, 3), torch.softmax(torch.randn(5, 2, 3, 3), 1))]
    with pytest.raises(ValueError, match="many places an example"):
        EmpiricalRisk(nn.Conv2d(1, 2, 1), data, loss=nn.CrossEntropyLoss())
