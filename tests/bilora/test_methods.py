"""Every method's step against its update equations, written out without adapters, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bilora import METHODS, BiLoraConfig, build_method
from bilora.adapters import adapter_factors
from bilora.clipping import adapter_norm, clip_adapter
from tests.bilora.conftest import TARGETS, backward_of, make_method, merged_loss, one_step

Batch = tuple[Tensor, Tensor]


def copies(method, adapter: str) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: (f.A.detach().clone(), f.B.detach().clone()) for name, f in adapter_factors(method.model, adapter).items()
    }


def randomise(method, adapter: str, seed: int, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factors in adapter_factors(method.model, adapter).values():
            for tensor in (factors.A, factors.B):
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))


def manual_gradients(
    network: nn.Module, batch: Batch, modules: list[dict[str, tuple[Tensor, Tensor]]], scaling: float = 3.0
) -> list[dict[str, tuple[Tensor, Tensor]]]:
    leaves = [{n: (a.clone().requires_grad_(), b.clone().requires_grad_()) for n, (a, b) in m.items()} for m in modules]
    deltas = {n: sum(scaling * m[n][1] @ m[n][0] for m in leaves) for n in TARGETS}
    merged_loss(network, batch, deltas).backward()
    return [{n: (a.grad, b.grad) for n, (a, b) in m.items()} for m in leaves]


@pytest.mark.parametrize("rho", [0.05, 100.0])
def test_bilora_steps_follow_the_update_equations(network: nn.Module, batch: Batch, rho: float) -> None:
    method = make_method(network, "bilora", rho=rho, auxiliary_lr=0.4)
    randomise(method, "primary", 3)
    randomise(method, "auxiliary", 4)
    optimizer = None
    for _ in range(3):
        primary, auxiliary = copies(method, "primary"), copies(method, "auxiliary")
        g1, g2 = manual_gradients(network, batch, [primary, auxiliary])
        optimizer = one_step(method, batch, optimizer, lr=0.1)
        descended = {n: (a - 0.1 * g1[n][0], b - 0.1 * g1[n][1]) for n, (a, b) in primary.items()}
        ascended = {n: (a + 0.4 * g2[n][0], b + 0.4 * g2[n][1]) for n, (a, b) in auxiliary.items()}
        norm = math.sqrt(sum(float((3.0 * b @ a).square().sum()) for a, b in ascended.values()))
        factor = math.sqrt(rho / norm) if norm > rho else 1.0
        for name in TARGETS:
            for got, expected in zip(copies(method, "primary")[name], descended[name], strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
            for got, expected in zip(copies(method, "auxiliary")[name], ascended[name], strict=True):
                torch.testing.assert_close(got, factor * expected, rtol=1e-12, atol=1e-14)


def test_bilora_with_adamw_keeps_separate_states(network: nn.Module, batch: Batch) -> None:
    method = make_method(network, "bilora", rho=10.0, auxiliary_lr=0.02)
    randomise(method, "auxiliary", 4)
    primary, auxiliary = copies(method, "primary"), copies(method, "auxiliary")
    g1, g2 = manual_gradients(network, batch, [primary, auxiliary])
    one_step(method, batch, torch.optim.AdamW(method.parameter_groups(0.01), weight_decay=0.0))
    for name in TARGETS:
        for i in range(2):  # Adam's first step is lr * g / (|g| + eps), descending and ascending
            step1, step2 = (g[name][i] / (g[name][i].abs() + 1e-8) for g in (g1, g2))
            torch.testing.assert_close(copies(method, "primary")[name][i], primary[name][i] - 0.01 * step1)
            torch.testing.assert_close(copies(method, "auxiliary")[name][i], auxiliary[name][i] + 0.02 * step2)


@pytest.mark.parametrize("mode", ["global", "layerwise"])
def test_clip_brings_the_norm_to_rho_and_keeps_the_direction(network: nn.Module, mode: str) -> None:
    method = make_method(network, "bilora")
    randomise(method, "auxiliary", 5)
    factors = adapter_factors(method.model, "auxiliary")
    before = {name: f.delta_weight.detach().clone() for name, f in factors.items()}
    dense = torch.sqrt(torch.stack([delta.square().sum() for delta in before.values()]).sum())
    torch.testing.assert_close(adapter_norm(factors.values()), dense)
    clip_adapter(factors, 0.05, mode)
    after = {name: f.delta_weight.detach() for name, f in factors.items()}
    norms = {name: delta.norm() for name, delta in after.items()}
    assert torch.stack(list(norms.values())).norm() == pytest.approx(0.05, rel=1e-12)
    if mode == "layerwise":
        assert all(norm == pytest.approx(0.05 / math.sqrt(2), rel=1e-12) for norm in norms.values())
    else:
        for name in TARGETS:
            torch.testing.assert_close(after[name], before[name] * (0.05 / dense))


def test_clip_leaves_a_small_auxiliary_alone(network: nn.Module) -> None:
    method = make_method(network, "bilora")
    randomise(method, "auxiliary", 5)
    before = copies(method, "auxiliary")
    clip_adapter(adapter_factors(method.model, "auxiliary"), 1e6, "global")
    clip_adapter(adapter_factors(method.model, "auxiliary"), 1e-6, "none")
    for name, pair in copies(method, "auxiliary").items():
        assert torch.equal(pair[0], before[name][0]) and torch.equal(pair[1], before[name][1])


def test_sam_takes_the_gradient_at_the_perturbed_weights(network: nn.Module, batch: Batch) -> None:
    method = make_method(network, "sam", rho=0.3)
    weights = [p.detach().clone() for p in method.model.parameters()]
    backward = backward_of(method, batch)
    backward()
    first = [p.grad.clone() for p in method.model.parameters()]
    norm = torch.stack([g.square().sum() for g in first]).sum().sqrt()
    method.model.zero_grad()
    method.gradient(backward)
    taken = [p.grad.clone() for p in method.model.parameters()]
    for p, w in zip(method.model.parameters(), weights, strict=True):
        assert torch.equal(p.detach(), w)  # restored bitwise
        p.grad = None
    with torch.no_grad():
        for p, g in zip(method.model.parameters(), first, strict=True):
            p.add_(0.3 * g / norm)
    backward()
    for p, g in zip(method.model.parameters(), taken, strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-12, atol=1e-14)


def test_lora_sam_perturbation_is_proposition_1(network: nn.Module, batch: Batch) -> None:
    """The factors' perturbation changes the weight by c(BBᵀG + GAᵀA) plus the cross term, c = s²rho/‖(g_A, g_B)‖."""
    method, rho, scaling = make_method(network, "lora_sam", rho=1e-4), 1e-4, 3.0
    randomise(method, "primary", 6)
    factors = adapter_factors(method.model, "primary")
    epsilons = method.first_pass(backward_of(method, batch), method.perturbed_parameters())
    by_id = {id(p): e for p, e in zip(method.perturbed_parameters(), epsilons, strict=True)}
    deltas = {n: f.delta_weight.detach().clone().requires_grad_() for n, f in factors.items()}
    merged_loss(network, batch, deltas).backward()
    g_factors = [scaling * f.B.T @ deltas[n].grad for n, f in factors.items()]
    g_factors += [scaling * deltas[n].grad @ f.A.T for n, f in factors.items()]
    norm = torch.stack([g.square().sum() for g in g_factors]).sum().sqrt()
    for name, f in factors.items():
        eps_a, eps_b = by_id[id(f.A)], by_id[id(f.B)]
        exact = scaling * ((f.B + eps_b) @ (f.A + eps_a) - f.B @ f.A)
        g = deltas[name].grad
        formula = scaling**2 * rho / norm * (f.B @ f.B.T @ g + g @ f.A.T @ f.A)
        cross = scaling * eps_b @ eps_a
        torch.testing.assert_close(exact - cross, formula, rtol=1e-9, atol=1e-15)
        assert float((exact - formula).detach().norm() / formula.detach().norm()) < 1e-3


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_flat_lora_takes_the_gradient_at_noisy_weights(network: nn.Module, batch: Batch, progress: float) -> None:
    method = make_method(network, "flat_lora", rho=0.3)
    randomise(method, "primary", 3)
    method.step, method.num_steps = int(4 * progress), 4
    factors = copies(method, "primary")
    noise = dict(zip(TARGETS, method.noise(), strict=True))
    before = {name: p.detach().clone() for name, p in method.model.named_parameters()}
    leaves = {n: (a.clone().requires_grad_(), b.clone().requires_grad_()) for n, (a, b) in factors.items()}
    merged_loss(network, batch, {n: 3.0 * b @ a + noise[n] for n, (a, b) in leaves.items()}).backward()
    method.gradient(backward_of(method, batch))
    for name, pair in adapter_factors(method.model, "primary").items():
        torch.testing.assert_close(pair.A.grad, leaves[name][0].grad, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(pair.B.grad, leaves[name][1].grad, rtol=1e-10, atol=1e-14)
    assert all(torch.equal(before[name], p) for name, p in method.model.named_parameters())


def test_flat_lora_noise_has_the_published_size(network: nn.Module) -> None:
    """Std of row i: f(t) · rho · ‖W_i‖ / √in, f(1/2) = 1/2; drawn anew each step, from the seed alone."""
    method = make_method(network, "flat_lora", rho=0.3)
    draws = []
    for step in range(2, 3002):
        method.step, method.num_steps = step, 2 * step
        draws.append(method.noise()[0])
    weight = network[0].weight.detach()
    expected = 0.5 * 0.3 * weight.norm(dim=1) / math.sqrt(weight.shape[1])
    observed = torch.stack(draws).square().mean(dim=(0, 2)).sqrt()
    torch.testing.assert_close(observed, expected, rtol=0.03, atol=0)
    again = make_method(network, "flat_lora", rho=0.3)
    again.step, again.num_steps = 2, 4
    assert torch.equal(again.noise()[0], draws[0]) and not torch.equal(draws[0], draws[1])


def test_lora_sam_full_perturbs_the_merged_weights_along_their_gradient(network: nn.Module, batch: Batch) -> None:
    method = make_method(network, "lora_sam_full", rho=0.2)
    randomise(method, "primary", 6)
    primary = copies(method, "primary")
    deltas = {n: (3.0 * b @ a).requires_grad_() for n, (a, b) in primary.items()}
    merged_loss(network, batch, deltas).backward()
    norm = torch.stack([d.grad.square().sum() for d in deltas.values()]).sum().sqrt()
    leaves = {n: (a.clone().requires_grad_(), b.clone().requires_grad_()) for n, (a, b) in primary.items()}
    moved = {n: 3.0 * b @ a + 0.2 * deltas[n].grad / norm for n, (a, b) in leaves.items()}
    merged_loss(network, batch, moved).backward()
    weights = [p.detach().clone() for p in method.model.parameters()]
    method.gradient(backward_of(method, batch))
    assert all(torch.equal(p.detach(), w) for p, w in zip(method.model.parameters(), weights, strict=True))
    for name, f in adapter_factors(method.model, "primary").items():
        torch.testing.assert_close(f.A.grad, leaves[name][0].grad, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(f.B.grad, leaves[name][1].grad, rtol=1e-10, atol=1e-14)
    trained = {id(p) for p in method.primary_parameters()}
    assert all(p.grad is None for p in method.model.parameters() if id(p) not in trained)


def test_dual_lora_descends_with_both(network: nn.Module, batch: Batch) -> None:
    method = make_method(network, "dual_lora", rho=100.0)
    randomise(method, "auxiliary", 4)
    auxiliary = copies(method, "auxiliary")
    _, g2 = manual_gradients(network, batch, [copies(method, "primary"), auxiliary])
    one_step(method, batch, lr=0.1)
    for name in TARGETS:
        torch.testing.assert_close(copies(method, "auxiliary")[name][0], auxiliary[name][0] - 0.1 * g2[name][0])
        torch.testing.assert_close(copies(method, "auxiliary")[name][1], auxiliary[name][1] - 0.1 * g2[name][1])


def test_random_auxiliary_is_new_at_every_step_and_has_norm_rho(network: nn.Module, batch: Batch) -> None:
    method = make_method(network, "random_aux", rho=0.07)
    seen = []
    for _ in range(2):
        primary = copies(method, "primary")
        one_step(method, batch)
        factors = adapter_factors(method.model, "auxiliary")
        assert float(adapter_norm(factors.values())) == pytest.approx(0.07)
        seen.append(factors["0"].A.detach().clone())
        assert any(not torch.equal(primary[n][1], copies(method, "primary")[n][1]) for n in TARGETS)
    assert not torch.equal(*seen)


def test_bilora_without_radius_is_lora_to_the_bit(network: nn.Module, batch: Batch) -> None:
    lora, bilora = make_method(network, "lora"), make_method(network, "bilora", rho=0.0)
    optimizers = [torch.optim.AdamW(m.parameter_groups(0.01), weight_decay=0.0) for m in (lora, bilora)]
    for _ in range(4):
        for method, optimizer in zip((lora, bilora), optimizers, strict=True):
            one_step(method, batch, optimizer)
    for name, (a, b) in copies(lora, "primary").items():
        assert torch.equal(a, copies(bilora, "primary")[name][0])
        assert torch.equal(b, copies(bilora, "primary")[name][1])


def test_one_seed_gives_all_methods_one_start(network: nn.Module) -> None:
    starts = {
        name: copies(make_method(network, name, seed=3), "primary") for name in METHODS if name not in ("full", "sam")
    }
    for name, factors in starts.items():
        for layer, (a, b) in factors.items():
            assert torch.equal(a[:2], starts["lora"][layer][0]), name
            assert torch.count_nonzero(b) == 0
    other = copies(make_method(network, "lora", seed=4), "primary")
    assert not torch.equal(other["0"][0], starts["lora"]["0"][0])
    assert starts["lora_2r"]["0"][0].shape[0] == 4
    assert float(adapter_factors(make_method(network, "lora_2r").model, "primary")["0"].scaling) == 3.0


@pytest.mark.parametrize("name", sorted(METHODS))
def test_declared_passes_are_the_passes_taken(network: nn.Module, batch: Batch, name: str) -> None:
    method, calls = make_method(network, name, rho=0.05), []
    backward = backward_of(method, batch)

    def counted(fraction: float = 1.0) -> Tensor:
        calls.append(fraction)
        return backward()

    method.optimizer, method.num_steps = torch.optim.SGD(method.parameter_groups(0.1)), 4
    method.gradient(counted)
    assert sum(calls) == METHODS[name].passes_per_step


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lora", "target_modules": ["nothing"]}, "matches no layer"),
        ({"method": "lora", "target_modules": ["1"]}, "Tanh"),
        ({"method": "lora", "target_modules": ["0"], "r": 7}, "rank 7 exceeds the dimensions of 0"),
        ({"method": "nope", "target_modules": ["0"]}, "expected one of full"),
    ],
)
def test_bad_settings_are_named_before_training(network: nn.Module, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method(network, BiLoraConfig(**settings), seed=0)


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
def test_bad_radius_is_refused(rho: float) -> None:
    with pytest.raises(ValueError, match="rho"):
        BiLoraConfig(rho=rho)
