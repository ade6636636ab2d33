"""The refreshed auxiliaries: subspace iteration, their updates by hand, and the full-rank methods they come from."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bilora import BiLoraConfig, attach, bilora_optimizer, build_method
from bilora.adapters import adapter_factors
from bilora.clipping import adapter_norm
from bilora.methods import Method
from bilora.parts import first_examples
from bilora.refreshing import start
from landscape import principal_angles
from tests.bilora.conftest import TARGETS, backward_of, make_method, merged_loss, one_step

Batch = tuple[Tensor, Tensor]
SCALING = 3.0


def prepared(network: nn.Module, name: str, **settings: object) -> Method:
    """A method in float64 whose auxiliary starts orthonormal to float64's precision."""
    method = make_method(network, name, **settings)
    if name.startswith("bilora"):
        start(method.auxiliary.values())
    return method


class Slope(nn.Module):
    """A layer whose loss is linear in its weight: the gradient is the given matrix everywhere."""

    def __init__(self, gradient: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(gradient.shape[1], gradient.shape[0], bias=False).double()
        self.gradient = gradient

    def forward(self) -> Tensor:
        inputs = torch.eye(self.gradient.shape[1], dtype=torch.float64)
        return (self.layer(inputs) * self.gradient.T).sum()


def of_slope(gradient: Tensor, name: str, r: int = 2, **settings: object) -> tuple[Method, Callable[..., Tensor]]:
    config = BiLoraConfig(method=name, r=r, target_modules=["layer"], rho=0.3, **settings)
    method = build_method(Slope(gradient), config, seed=0)
    method.model.double()
    start(method.auxiliary.values())

    def backward(fraction: float = 1.0) -> Tensor:
        loss = method.model()
        loss.backward()
        return loss.detach()

    return method, backward


@pytest.mark.parametrize(("name", "steps_per_iteration"), [("bilora_fresh", 1), ("bilora_stale", 2)])
def test_the_space_converges_at_the_rate_of_subspace_iteration(name: str, steps_per_iteration: int) -> None:
    values = [3.0, 2.5, 1.0, 0.5, 0.2]
    left, _ = torch.linalg.qr(torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    gradient = left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T
    method, backward = of_slope(gradient, name)
    pair = method.auxiliary["layer"]
    tangents = [math.tan(float(principal_angles(pair.A.detach().T, right[:, :2])[-1]))]
    for _ in range(12 * steps_per_iteration):
        method.gradient(backward)
        method.after_step()
        if method.step % steps_per_iteration == 0:
            tangents.append(math.tan(float(principal_angles(pair.A.detach().T, right[:, :2])[-1])))
    # (sigma_3 / sigma_2)^2 an iteration on G^T G, until rounding.
    rate = (1.0 / 2.5) ** 2
    for number, tangent in enumerate(tangents):
        assert tangent <= 1.001 * rate**number * tangents[0] + 1e-7
    assert tangents[5] > 0.01 * rate**5 * tangents[0]  # and no faster: it is this iteration


@pytest.mark.parametrize("name", ["bilora_stale", "bilora_fresh"])
def test_the_perturbation_has_norm_rho_over_all_layers(network: nn.Module, batch: Batch, name: str) -> None:
    method = make_method(network, name, rho=0.07)
    backward = backward_of(method, batch)
    seen: list[float] = []

    def watched(fraction: float = 1.0) -> Tensor:
        if method.under_way == "step":
            dense = [pair.delta_weight for pair in method.auxiliary.values()]
            seen.append(float(torch.cat([d.flatten() for d in dense]).norm()))
        return backward(fraction)

    optimizer = torch.optim.SGD(method.parameter_groups(0.1))
    for _ in range(4):
        method.gradient(watched)
        optimizer.step()
        method.after_step()
        optimizer.zero_grad()
    first = [0.0] if name == "bilora_stale" else [0.07]
    assert seen == pytest.approx(first + 3 * [0.07], rel=1e-6)


def polar(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def by_hand(
    network: nn.Module, batch: Batch, primary: dict[str, tuple[Tensor, Tensor]], epsilons: dict[str, Tensor]
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Gradients of the primary's factors, and G by layer, at a perturbed point."""
    leaves = {n: (a.clone().requires_grad_(), b.clone().requires_grad_()) for n, (a, b) in primary.items()}
    merged = {n: SCALING * b @ a + epsilons.get(n, 0.0) for n, (a, b) in leaves.items()}
    for delta in merged.values():
        delta.retain_grad()
    merged_loss(network, batch, merged).backward()
    return {n: (a.grad, b.grad) for n, (a, b) in leaves.items()}, {n: delta.grad for n, delta in merged.items()}


def scaled(blocks: dict[str, Tensor], rho: float) -> dict[str, Tensor]:
    norm = torch.cat([block.flatten() for block in blocks.values()]).norm()
    return {name: block * (rho / norm) for name, block in blocks.items()}


@pytest.mark.parametrize("name", ["bilora_stale", "bilora_fresh"])
def test_steps_follow_the_update_equations(network: nn.Module, batch: Batch, name: str) -> None:
    """Five steps in float64, with projections instead of factors."""
    rho, lr, fraction = 0.2, 0.3, 3 / 7
    method = prepared(network, name, rho=rho, ascent_fraction=fraction)
    primary = {n: (f.A.detach().clone(), f.B.detach().clone()) for n, f in _factors(method, "primary").items()}
    rows = {n: f.A.detach().clone() for n, f in _factors(method, "auxiliary").items()}
    columns: dict[str, Tensor] = {}
    epsilons: dict[str, Tensor] = {}
    optimizer = torch.optim.SGD(method.parameter_groups(lr))
    for step in range(5):
        if name == "bilora_fresh":
            part = (batch[0][:3], batch[1][:3])
            _, there = by_hand(network, part, primary, {})
            epsilons = scaled({n: g @ rows[n].T @ rows[n] for n, g in there.items()}, rho)
            columns = {n: polar(g @ rows[n].T) for n, g in there.items()}
        slopes, gradient = by_hand(network, batch, primary, epsilons)
        primary = {n: (a - lr * slopes[n][0], b - lr * slopes[n][1]) for n, (a, b) in primary.items()}
        if name == "bilora_stale" and step % 2 == 0:
            epsilons = scaled({n: g @ rows[n].T @ rows[n] for n, g in gradient.items()}, rho)
            columns = {n: polar(g @ rows[n].T) for n, g in gradient.items()}
        else:
            epsilons = scaled({n: columns[n] @ columns[n].T @ g for n, g in gradient.items()}, rho)
            rows = {n: polar(g.T @ columns[n]).T for n, g in gradient.items()}
        method.gradient(backward_of(method, batch))
        optimizer.step()
        method.after_step()
        optimizer.zero_grad()
        for n in TARGETS:
            pair = _factors(method, "primary")[n]
            for got, expected in zip((pair.A, pair.B), primary[n], strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(
                _factors(method, "auxiliary")[n].delta_weight, epsilons[n], rtol=1e-8, atol=1e-10
            )


def _factors(method: Method, adapter: str) -> dict:
    return adapter_factors(method.model, adapter)


@pytest.fixture
def square() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize(("name", "whole"), [("bilora_stale", "lora_sam_lag"), ("bilora_fresh", "lora_sam_full")])
def test_at_full_rank_they_are_the_methods_they_come_from(
    square: nn.Module, batch: Batch, name: str, whole: str
) -> None:
    """Of square layers: in a layer that is wider than high, r = out rows do not hold every row space."""
    mine = prepared(square, name, rho=0.2, auxiliary_r=6, ascent_fraction=1.0)
    theirs = make_method(square, whole, rho=0.2)
    optimizers = [None, None]
    for _ in range(5):
        for index, method in enumerate((mine, theirs)):
            optimizers[index] = optimizers[index] or torch.optim.SGD(method.parameter_groups(0.2))
            method.gradient(backward_of(method, batch))
            optimizers[index].step()
            method.after_step()
            optimizers[index].zero_grad()
    for n in TARGETS:
        torch.testing.assert_close(
            _factors(mine, "primary")[n].delta_weight,
            _factors(theirs, "primary")[n].delta_weight,
            rtol=1e-6,
            atol=1e-8,
        )
    assert float(_factors(mine, "primary")["0"].delta_weight.norm()) > 0.01


def test_lagged_method_uses_the_last_steps_gradient(network: nn.Module, batch: Batch) -> None:
    method, lr, rho = make_method(network, "lora_sam_lag", rho=0.2), 0.3, 0.2
    primary = {n: (f.A.detach().clone(), f.B.detach().clone()) for n, f in _factors(method, "primary").items()}
    epsilons: dict[str, Tensor] = {}
    optimizer = torch.optim.SGD(method.parameter_groups(lr))
    for _ in range(4):
        slopes, gradient = by_hand(network, batch, primary, epsilons)
        primary = {n: (a - lr * slopes[n][0], b - lr * slopes[n][1]) for n, (a, b) in primary.items()}
        epsilons = scaled(gradient, rho)
        one_step(method, batch, optimizer)
        for n in TARGETS:
            torch.testing.assert_close(_factors(method, "primary")[n].A, primary[n][0], rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(_factors(method, "primary")[n].B, primary[n][1], rtol=1e-9, atol=1e-11)


def test_rank_cut_method_takes_the_largest_singular_values(network: nn.Module, batch: Batch) -> None:
    method = make_method(network, "lora_sam_rank", rho=0.2, auxiliary_r=1)
    with torch.no_grad():
        for pair in _factors(method, "primary").values():
            pair.B.copy_(torch.randn(pair.B.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    primary = {n: (f.A.detach().clone(), f.B.detach().clone()) for n, f in _factors(method, "primary").items()}
    _, gradient = by_hand(network, batch, primary, {})
    cut = {}
    for n, g in gradient.items():
        left, values, right = torch.linalg.svd(g)
        cut[n] = values[0] * torch.outer(left[:, 0], right[0])
    slopes, _ = by_hand(network, batch, primary, scaled(cut, 0.2))
    method.gradient(backward_of(method, batch))
    for n in TARGETS:
        torch.testing.assert_close(_factors(method, "primary")[n].A.grad, slopes[n][0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(_factors(method, "primary")[n].B.grad, slopes[n][1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_inner_ascents_move_the_auxiliary_alone_and_keep_the_ball(network: nn.Module, batch: Batch, steps: int) -> None:
    """Against the same ascents written out: projected gradient ascent of the factors at a fixed primary."""
    method = make_method(network, "bilora_inner", rho=0.1, auxiliary_lr=0.5, inner_steps=steps)
    primary = {n: (f.A.detach().clone(), f.B.detach().clone()) for n, f in _factors(method, "primary").items()}
    auxiliary = {n: (f.A.detach().clone(), f.B.detach().clone()) for n, f in _factors(method, "auxiliary").items()}
    optimizer = torch.optim.SGD(method.parameter_groups(0.1))
    optimizer.register_step_pre_hook(lambda *_: method.before_step())
    optimizer.register_step_post_hook(lambda *_: method.after_step())
    method.optimizer = optimizer
    method.gradient(backward_of(method, batch))
    for _ in range(steps):
        _, gradient = by_hand(network, batch, primary, {n: SCALING * b @ a for n, (a, b) in auxiliary.items()})
        auxiliary = {
            n: (a + 0.5 * SCALING * b.T @ gradient[n], b + 0.5 * SCALING * gradient[n] @ a.T)
            for n, (a, b) in auxiliary.items()
        }
        norm = math.sqrt(sum(float((SCALING * b @ a).square().sum()) for a, b in auxiliary.values()))
        shrink = math.sqrt(min(1.0, 0.1 / norm))
        auxiliary = {n: (shrink * a, shrink * b) for n, (a, b) in auxiliary.items()}
    for n in TARGETS:
        torch.testing.assert_close(_factors(method, "auxiliary")[n].A, auxiliary[n][0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(_factors(method, "auxiliary")[n].B, auxiliary[n][1], rtol=1e-9, atol=1e-12)
        assert torch.equal(_factors(method, "primary")[n].A, primary[n][0])
    assert method.step == 0
    optimizer.step()
    assert method.step == 1


@pytest.mark.parametrize("name", ["bilora_stale", "bilora_fresh"])
def test_gradients_of_low_rank_and_of_nothing_leave_an_orthonormal_space(name: str) -> None:
    narrow = torch.zeros(7, 6, dtype=torch.float64)
    narrow[2, 3] = 2.0
    for gradient in (narrow, torch.zeros_like(narrow)):
        method, backward = of_slope(gradient, name, r=3)
        pair = method.auxiliary["layer"]
        for _ in range(4):
            method.gradient(backward)
            method.after_step()
            assert torch.isfinite(pair.A).all() and torch.isfinite(pair.B).all()
            learned = pair.B if name == "bilora_stale" and method.step % 2 else pair.A.T
            torch.testing.assert_close(learned.T @ learned, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-9)
        expected = gradient * (0.3 / 2.0)
        torch.testing.assert_close(pair.delta_weight, expected, rtol=1e-9, atol=1e-12)


def test_a_zero_radius_is_lora(network: nn.Module, batch: Batch) -> None:
    lora = make_method(network, "lora")
    for name in ("bilora_stale", "bilora_fresh", "bilora_inner"):
        method = make_method(network, name, rho=0.0)
        for _ in range(3):
            one_step(method, batch, lr=0.2)
        fresh = make_method(network, "lora")
        for _ in range(3):
            one_step(fresh, batch, lr=0.2)
        for n in TARGETS:
            assert torch.equal(_factors(method, "primary")[n].B, _factors(fresh, "primary")[n].B)
    assert lora.passes_per_step == 1


@pytest.mark.parametrize(
    "setting", [{"share": "A"}, {"auxiliary_lr": 0.1}, {"clip": "none"}, {"match_gradients": True}]
)
@pytest.mark.parametrize("name", ["bilora_stale", "bilora_fresh"])
def test_settings_of_a_learned_auxiliary_are_refused(network: nn.Module, name: str, setting: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}: {name} does not use it"):
        build_method(network, BiLoraConfig(method=name, r=2, target_modules=["0"], **setting), seed=0)


def test_stale_auxiliary_in_a_loop_of_ones_own(network: nn.Module, batch: Batch) -> None:
    """Whose optimizer knows nothing of the auxiliary's gradients, and clears its own weights' alone."""
    model = attach(network.float(), BiLoraConfig(method="bilora_stale", r=2, target_modules=TARGETS, rho=0.1))
    optimizer = bilora_optimizer(model, torch.optim.AdamW, lr=0.01)
    for _ in range(3):
        F.cross_entropy(model(batch[0].float()), batch[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        method = model.bilora_method
        assert all(f.A.grad is None and f.B.grad is None for f in method.auxiliary.values())
        assert float(adapter_norm(method.auxiliary.values())) == pytest.approx(0.1, rel=1e-6)


def test_a_part_of_a_batch_has_whole_examples() -> None:
    batch = {"x": torch.arange(10).view(5, 2), "more": [torch.arange(5)], "scale": torch.tensor(2.0), "name": "a"}
    part = first_examples(batch, 0.25)
    assert part["x"].tolist() == [[0, 1], [2, 3]] and part["more"][0].tolist() == [0, 1]
    assert part["scale"] == 2.0 and part["name"] == "a"
    assert len(first_examples(batch, 1e-9)["x"]) == 1 and len(first_examples(batch, 0.6)["x"]) == 3
    with pytest.raises(ValueError, match=r"y: expected 5 rows, one per example, .* got \(4,\)"):
        first_examples({"x": torch.zeros(5), "y": torch.zeros(4)}, 0.5)


def test_a_pass_that_cannot_take_a_part_is_refused(network: nn.Module, batch: Batch) -> None:
    method = make_method(network, "bilora_fresh", rho=0.1)
    backward = backward_of(method, batch)
    with pytest.raises(ValueError, match="backward: bilora_fresh runs it on a part of the batch"):
        method.gradient(lambda: backward(1.0))


@pytest.mark.parametrize("name", ["bilora_stale", "bilora_fresh", "lora_sam_rank", "lora_sam_lag"])
def test_a_transposed_weight_gives_the_same_training(batch: Batch, name: str) -> None:
    """GPT-2's `Conv1D` holds the transposed weight."""
    torch.manual_seed(4)
    linear = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    turned = nn.Sequential(Conv1D(5, 6), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        turned[0].weight.copy_(linear[0].weight.T)
        turned[0].bias.copy_(linear[0].bias)
    turned[2].load_state_dict(linear[2].state_dict())
    products = []
    for network in (linear, turned):
        method = build_method(network, BiLoraConfig(method=name, r=2, rho=0.2, target_modules=["0"]), seed=0)
        method.model.double()
        for _ in range(3):
            one_step(method, batch, lr=0.2)
        products.append(_factors(method, "primary")["0"].delta_weight)
    torch.testing.assert_close(products[0], products[1], rtol=1e-9, atol=1e-12)
