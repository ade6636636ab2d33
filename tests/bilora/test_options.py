"""Variants of the methods: shared factors, schedules, matched gradients, adaptive SAM."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bilora import BiLoraConfig
from bilora.adapters import adapter_factors
from bilora.clipping import adapter_norm
from tests.bilora.conftest import TARGETS, backward_of, make_method, merged_loss, one_step

Batch = tuple[Tensor, Tensor]


@pytest.mark.parametrize("shared", ["A", "B"])
def test_a_shared_factor_is_the_primarys_and_the_clip_leaves_it_alone(
    network: nn.Module, batch: Batch, shared: str
) -> None:
    method, lone = make_method(network, "bilora", rho=0.02, share=shared), 0
    optimizer = torch.optim.SGD(method.parameter_groups(0.3))
    for _ in range(6):
        one_step(method, batch, optimizer)
        for name, pair in method.auxiliary.items():
            assert torch.equal(getattr(pair, shared), getattr(method.primary[name], shared))
        lone += float(method.clip_scale) < 1
    assert lone > 0
    assert 0 < float(adapter_norm(method.auxiliary.values())) <= 0.02 * (1 + 1e-9)
    assert len(method.auxiliary_parameters()) == len(TARGETS)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.2, 0.2, 0.2]),
        ("warmup", [0.0, 0.2, 0.2]),
        ("cosine", [0.2, 0.1, 0.0]),
        ("cooled", [0.2, 0.2, 0.0]),
    ],
)
def test_rho_schedules(schedule: str, expected: list[float]) -> None:
    config = BiLoraConfig(rho=0.2, rho_schedule=schedule)
    assert [config.rho_at(t) for t in (0.0, 0.5, 1.0)] == pytest.approx(expected)
    assert BiLoraConfig(rho=0.2, rho_schedule="warmup").rho_at(0.05) == pytest.approx(0.1)


def test_the_clip_follows_the_schedule(network: nn.Module, batch: Batch) -> None:
    method = make_method(network, "bilora", rho=0.05, rho_schedule="cosine")
    method.num_steps = 10
    optimizer = torch.optim.SGD(method.parameter_groups(1.0))
    norms = []
    for _ in range(9):
        one_step(method, batch, optimizer)
        norms.append(float(adapter_norm(method.auxiliary.values())))
        assert norms[-1] <= method.rho * (1 + 1e-6)
    assert norms[-1] < 0.1 * max(norms)


def test_a_cooled_auxiliary_rests_at_the_end(network: nn.Module, batch: Batch) -> None:
    method = make_method(network, "bilora", rho=0.05, rho_schedule="cooled")
    method.num_steps = 10
    optimizer = torch.optim.SGD(method.parameter_groups(1.0))
    norms = []
    for _ in range(10):
        one_step(method, batch, optimizer)
        norms.append(float(adapter_norm(method.auxiliary.values())))
    assert min(norms[:7]) > 0 and norms[8:] == [0.0, 0.0]


def test_matched_gradients_have_one_norm(network: nn.Module, batch: Batch) -> None:
    method = make_method(network, "bilora", rho=1.0, match_gradients=True)
    with torch.no_grad():
        for pair in method.primary.values():
            pair.B.fill_(0.1)
    method.gradient(backward_of(method, batch))
    raw = [p.grad.clone() for p in method.auxiliary_parameters()]
    method.before_step()
    have = [p.grad for p in method.auxiliary_parameters()]
    norm = torch.nn.utils.get_total_norm([p.grad for p in method.primary_parameters()])
    torch.testing.assert_close(torch.nn.utils.get_total_norm(have), norm)
    scale = norm / torch.nn.utils.get_total_norm(raw)
    for a, b in zip(raw, have, strict=True):
        torch.testing.assert_close(b, -a * scale)  # the optimizer descends along the negated gradient


@pytest.mark.parametrize("name", ["sam", "lora_sam", "lora_sam_full"])
def test_adaptive_sam_moves_by_the_published_perturbation(network: nn.Module, batch: Batch, name: str) -> None:
    """ASAM, equation 3: rho T² g / ‖T g‖ with T = |w| + 0.01, so ‖T⁻¹ epsilon‖ = rho."""
    method = make_method(network, name, rho=0.1, adaptive=True)
    if name != "sam":
        with torch.no_grad():
            for pair in adapter_factors(method.model, "primary").values():
                pair.B.copy_(torch.randn(pair.B.shape, generator=torch.Generator().manual_seed(3)))
    points: list[dict[str, Tensor]] = []

    def backward() -> Tensor:
        points.append({n: p.detach().clone() for n, p in method.model.named_parameters()})
        return backward_of(method, batch)()

    method.gradient(backward)
    moved = {n: points[1][n] - points[0][n] for n in points[0] if not torch.equal(points[0][n], points[1][n])}
    sizes = {n: points[0][n].abs() + 0.01 for n in moved}
    if name == "lora_sam_full":
        factors = adapter_factors(method.model, "primary")
        layers = {f"base_model.model.{n}.base_layer.weight": pair for n, pair in factors.items()}
        assert set(moved) == set(layers)
        sizes = {n: (points[0][n] + layers[n].delta_weight.detach()).abs() + 0.01 for n in moved}
        deltas = {n: pair.delta_weight.detach().clone().requires_grad_() for n, pair in factors.items()}
        merged_loss(network, batch, deltas).backward()
        gradients = {f"base_model.model.{n}.base_layer.weight": d.grad for n, d in deltas.items()}
        tg = torch.stack([(sizes[n] * gradients[n]).square().sum() for n in moved]).sum().sqrt()
        for n, change in moved.items():
            torch.testing.assert_close(change, 0.1 * sizes[n] ** 2 * gradients[n] / tg, rtol=1e-8, atol=1e-12)
    norm = torch.stack([(moved[n] / sizes[n]).square().sum() for n in moved]).sum().sqrt()
    assert float(norm) == pytest.approx(0.1, rel=1e-8)
