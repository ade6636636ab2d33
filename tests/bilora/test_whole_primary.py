"""All weights descend beside an auxiliary of rank r: the update by hand, saving, resuming, and the minimum."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bilora import BiLoraConfig, BiLoraTrainer, build_method, minimum
from bilora.refreshing import start
from tests.bilora.conftest import TARGETS, backward_of, make_method, one_step
from tests.bilora.test_trainer import dataset, tiny_vit
from tests.bilora.test_trainer_features import StopAt, trainer

Batch = tuple[Tensor, Tensor]
AUXILIARIES = ["bilora", "bilora_stale", "bilora_fresh", "bilora_inner", "dual_lora", "random_aux"]


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    named = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" not in name}
    return {name.removeprefix("base_model.model.").replace(".base_layer.", "."): p for name, p in named.items()}


def test_all_weights_descend_at_the_point_that_the_auxiliary_gives(network: nn.Module, batch: Batch) -> None:
    """Against a SAM step on the targets' weights, projected on the rows of the auxiliary, written without adapters."""
    method = make_method(network, "bilora_fresh", rho=0.2, primary="full", ascent_fraction=1.0)
    start(method.auxiliary.values())
    rows = {f"{n}.weight": pair.A.detach().clone() for n, pair in method.auxiliary.items()}
    weights = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    gradients = torch.autograd.grad(_loss(network, weights, batch), list(weights.values()))
    of = dict(zip(weights, gradients, strict=True))
    epsilons = {name: of[name] @ rows[name].T @ rows[name] for name in rows}
    norm = torch.cat([e.flatten() for e in epsilons.values()]).norm()
    moved = {name: p + (0.2 / norm * epsilons[name] if name in rows else 0.0) for name, p in weights.items()}
    there = torch.autograd.grad(_loss(network, moved, batch), list(weights.values()))
    expected = {name: p.detach() - 0.1 * g for (name, p), g in zip(weights.items(), there, strict=True)}
    one_step(method, batch, lr=0.1)
    for name, weight in own_weights(method.model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-9, atol=1e-12)
    method.deploy()
    torch.testing.assert_close(method.model(batch[0]), functional_call(network, expected, (batch[0],)))


def _loss(network: nn.Module, weights: dict[str, Tensor], batch: Batch) -> Tensor:
    return F.cross_entropy(functional_call(network, weights, (batch[0],)), batch[1])


@pytest.mark.parametrize("name", ["bilora", "bilora_stale", "bilora_fresh"])
def test_without_radius_it_is_full_fine_tuning_to_the_bit(network: nn.Module, batch: Batch, name: str) -> None:
    full = build_method(copy.deepcopy(network), BiLoraConfig(method="full"), seed=0)
    mine = make_method(network, name, rho=0.0, primary="full")
    for _ in range(3):
        one_step(full, batch)
        one_step(mine, batch)
    for (key, expected), got in zip(full.model.named_parameters(), own_weights(mine.model).values(), strict=True):
        assert torch.equal(got, expected), key


@pytest.mark.parametrize("name", AUXILIARIES)
def test_what_is_saved_is_the_plain_model_without_the_auxiliary(tmp_path: Path, name: str) -> None:
    run = trainer(tmp_path, name, primary="full", rho=0.5, max_steps=4)
    before = own_weights(run.model)
    run.train()
    assert any(not torch.equal(p, before[key]) for key, p in own_weights(run.model).items())
    run.save_model(str(tmp_path / "result"))
    left = {file.name for file in (tmp_path / "result").iterdir()}
    assert left == {"config.json", "model.safetensors", "bilora.json", "training_args.bin"}
    loaded = type(tiny_vit()).from_pretrained(tmp_path / "result").eval()
    images = torch.stack([example["pixel_values"] for example in dataset()])
    run.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values=images).logits, run.model(pixel_values=images).logits)
    found = minimum(run)
    assert set(found.factors) == {"auxiliary"} and len(found.weight_names) == 2
    plain = dict(loaded.named_parameters())
    for key in found.weight_names:
        assert torch.equal(dict(found.model.named_parameters())[key], plain[key])


@pytest.mark.parametrize("name", AUXILIARIES)
def test_resuming_continues_to_the_bit(tmp_path: Path, name: str) -> None:
    options = {"save_strategy": "steps", "save_steps": 3, "primary": "full"}
    whole = trainer(tmp_path / "whole", name, **options)
    whole.train()
    trainer(tmp_path / "part", name, callbacks=[StopAt(3)], **options).train()
    resumed = trainer(tmp_path / "part", name, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    for (key, expected), got in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(expected, got), key


def test_evaluation_leaves_the_auxiliary_out(tmp_path: Path) -> None:
    run: BiLoraTrainer = trainer(tmp_path, "bilora", primary="full", rho=5.0, learning_rate=0.1)
    run.train()
    run.method.engage()
    images = torch.stack([example["pixel_values"] for example in dataset()])
    run.model.eval()
    with torch.no_grad():
        both = run.model(pixel_values=images).logits
        plain = minimum(run).model(pixel_values=images).logits
    assert not torch.allclose(both, plain, atol=1e-3)
    torch.testing.assert_close(torch.tensor(run.predict(dataset()).predictions), plain)
    assert all(p.requires_grad for p in run.method.auxiliary_parameters())


def test_frozen_weights_stay_frozen(network: nn.Module, batch: Batch) -> None:
    network[4].requires_grad_(False)
    method = make_method(network, "bilora_stale", rho=0.1, primary="full")
    optimizer = torch.optim.SGD(method.parameter_groups(0.1))
    method.gradient(backward_of(method, batch))
    optimizer.step()
    after = own_weights(method.model)
    assert torch.equal(after["4.weight"], network[4].weight) and not torch.equal(after["0.weight"], network[0].weight)


def test_what_does_not_fit_is_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="primary: lora trains a primary adapter"):
        build_method(network, BiLoraConfig(method="lora", primary="full", target_modules=TARGETS), seed=0)
    with pytest.raises(ValueError, match="primary: full trains all weights and has no primary adapter to which share"):
        BiLoraConfig(primary="full", share="A", target_modules=TARGETS)


@pytest.mark.parametrize("name", ["bilora", "bilora_fresh"])
def test_a_checkpoint_is_the_minimum_that_the_trainer_has(tmp_path: Path, name: str) -> None:
    run = trainer(tmp_path, name, save_strategy="steps", save_steps=4, primary="full", max_steps=4)
    base = tiny_vit()
    run.train()
    found, right = minimum(tmp_path / "checkpoint-4", base=base), minimum(run)
    for (key, expected), got in zip(right.model.named_parameters(), found.model.parameters(), strict=True):
        assert torch.equal(expected, got), key
    assert found.weight_names == right.weight_names and set(found.factors) == {"auxiliary"}
    before = dict(base.named_parameters())
    for key, update in found.updates.items():
        torch.testing.assert_close(before[key] + update, dict(found.model.named_parameters())[key])
        assert bool(update.any())
    with pytest.raises(ValueError, match=r"base: .* holds weights without a model"):
        minimum(tmp_path / "checkpoint-4")
