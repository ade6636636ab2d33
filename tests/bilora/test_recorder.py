"""What is noted along training, against dense matrices."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bilora.optimizers import method_optimizer
from bilora.recorder import DynamicsRecorder
from tests.bilora.conftest import backward_of, make_method, merged_loss
from tests.bilora.test_trainer_features import trainer

Batch = tuple[Tensor, Tensor]


def noted(method, batch: Batch, learning_rate: float = 0.2) -> dict[str, float]:
    recorder = DynamicsRecorder(method, every=1)
    state = SimpleNamespace(global_step=0)
    optimizer = method_optimizer(method, torch.optim.SGD, lr=learning_rate)
    recorder.on_step_begin(None, state, None)
    method.gradient(backward_of(method, batch))
    recorder.on_pre_optimizer_step(None, state, None)
    optimizer.step()
    recorder.on_optimizer_step(None, state, None)
    return recorder.rows[0]


def start(factors, seed: int, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for pair in factors.values():
            pair.B.copy_(scale * torch.randn(pair.B.shape, generator=generator, dtype=torch.float64))


def flat(blocks) -> Tensor:
    return torch.cat([block.detach().flatten() for block in blocks])


@pytest.mark.parametrize("clip", ["global", "layerwise"])
def test_ascent_and_its_optimum(network: nn.Module, batch: Batch, clip: str) -> None:
    method = make_method(network, "bilora", rho=0.4, clip=clip)
    start(method.primary, 1)
    start(method.auxiliary, 2, 0.02)
    deltas = {n: method.primary[n].delta_weight + method.auxiliary[n].delta_weight for n in method.primary}
    deltas = {n: delta.detach().requires_grad_() for n, delta in deltas.items()}
    merged_loss(network, batch, deltas).backward()
    gradients = {n: delta.grad for n, delta in deltas.items()}
    g = flat(gradients.values())
    before = flat(pair.delta_weight for pair in method.auxiliary.values())
    unclipped = []
    for name, pair in method.auxiliary.items():
        a = pair.A.detach() + 0.2 * pair.scaling * pair.B.detach().T @ gradients[name]
        b = pair.B.detach() + 0.2 * pair.scaling * gradients[name] @ pair.A.detach().T
        unclipped.append(pair.scaling * b @ a)
    row = noted(method, batch)
    after = flat(pair.delta_weight for pair in method.auxiliary.values())
    singular = [torch.linalg.svdvals(gradient)[:2] for gradient in gradients.values()]
    expected = {
        "gain": g @ before,
        "cosine": g @ before / g.norm() / before.norm(),
        "gradient_norm": g.norm(),
        "auxiliary_norm": before.norm(),
        "ascent": g @ (after - before),
        "ascent_before_clip": g @ (flat(unclipped) - before),
        "gain_optimum": 0.4 * torch.cat(singular).norm(),
        "gain_ky_fan": 0.4 * torch.cat(singular).sum(),
    }
    assert row["step"] == 1
    for name, value in expected.items():
        assert row[name] == pytest.approx(float(value), rel=1e-9), name
    assert all(not p.requires_grad for n, p in method.model.named_parameters() if "base_layer" in n)


def test_the_optimum_is_reached_by_the_top_singular_vectors(network: nn.Module, batch: Batch) -> None:
    """The auxiliary set to the gradient's rank-2 part, scaled to norm rho, gains the optimum at first order."""
    method = make_method(network, "bilora", rho=0.05)
    start(method.primary, 1)
    deltas = {n: pair.delta_weight.detach().requires_grad_() for n, pair in method.primary.items()}
    merged_loss(network, batch, deltas).backward()
    parts = {n: torch.linalg.svd(delta.grad, full_matrices=False) for n, delta in deltas.items()}
    norm = torch.cat([singular[:2] for _, singular, _ in parts.values()]).norm()
    with torch.no_grad():
        for name, pair in method.auxiliary.items():
            left, singular, right = parts[name]
            pair.B.copy_(left[:, :2] * singular[:2] * 1e-6 / norm / pair.scaling)
            pair.A.copy_(right[:2])
    row = noted(method, batch)
    assert row["gain"] / 1e-6 == pytest.approx(row["gain_optimum"] / 0.05, rel=1e-4)
    assert row["gain_ky_fan"] > row["gain_optimum"]


def test_first_proposition(network: nn.Module, batch: Batch) -> None:
    """The formula is LoRA-SAM's perturbation without its cross term: the error falls with rho, the space holds it."""
    errors = []
    for rho in (1e-1, 1e-3):
        method = make_method(network, "lora_sam", rho=rho)
        start(method_factors(method), 5)
        row = noted(method, batch)
        assert 1 - 0.2 * rho < row["formula_share"] <= 1 + 1e-9
        errors.append(row["formula_error"])
    assert errors[1] < 0.02 * errors[0]


def method_factors(method):
    from bilora.adapters import adapter_factors

    return adapter_factors(method.model, "primary")


@pytest.mark.parametrize("name", ["lora_sam_full", "lora_sam_rank", "bilora_fresh"])
def test_a_fresh_perturbation_lies_along_the_gradient_at_the_weights(
    network: nn.Module, batch: Batch, name: str
) -> None:
    """And is noted against the one at the perturbed weights, where the step takes its own."""
    method = make_method(network, name, rho=0.3, auxiliary_r=1, ascent_fraction=1.0)
    start(method_factors(method), 5)
    deltas = {n: pair.delta_weight.detach().requires_grad_() for n, pair in method_factors(method).items()}
    merged_loss(network, batch, deltas).backward()
    epsilons = {n: delta.grad for n, delta in deltas.items()}
    if name == "lora_sam_rank":
        cut = {n: torch.linalg.svd(g) for n, g in epsilons.items()}
        epsilons = {n: s[0] * torch.outer(left[:, 0], right[0]) for n, (left, s, right) in cut.items()}
    if name == "bilora_fresh":
        rows = {n: pair.A.detach() for n, pair in method.auxiliary.items()}
        epsilons = {n: g @ rows[n].T @ rows[n] for n, g in epsilons.items()}
    size = flat(epsilons.values()).norm()
    epsilons = {n: 0.3 * epsilon / size for n, epsilon in epsilons.items()}
    moved = {n: (delta + epsilons[n]).detach().requires_grad_() for n, delta in deltas.items()}
    merged_loss(network, batch, moved).backward()
    g, e = flat(delta.grad for delta in moved.values()), flat(epsilons.values())
    row = noted(method, batch)
    expected = {"gain": g @ e, "cosine": g @ e / g.norm() / 0.3, "gradient_norm": g.norm(), "auxiliary_norm": 0.3}
    for key, value in expected.items():
        assert row[key] == pytest.approx(float(value), rel=1e-6), key
    assert ("gain_optimum" in row) == (name == "bilora_fresh")


@pytest.mark.parametrize(
    ("method", "rows"),
    [("bilora", 3), ("random_aux", 3), ("lora_sam", 3), ("lora_sam_lag", 3), ("bilora_stale", 3), ("bilora_fresh", 3),
     ("lora", 0)],
)  # fmt: skip
def test_recording_leaves_training_as_it_is(tmp_path: Path, method: str, rows: int) -> None:
    plain, recorded = (trainer(tmp_path, method) for _ in range(2))
    recorder = DynamicsRecorder(recorded.method, every=3)
    recorded.add_callback(recorder)
    plain.train()
    recorded.train()
    assert [row["step"] for row in recorder.rows] == [1, 4, 7][:rows]
    for expected, actual in zip(plain.model.parameters(), recorded.model.parameters(), strict=True):
        assert torch.equal(expected, actual)
