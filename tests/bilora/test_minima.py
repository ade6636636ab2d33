"""From a trained model to its merged weights, its risk and its spaces."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from bilora import BiLoraConfig, attach, minimum
from bilora.adapters import adapter_factors
from landscape.losses import next_token_cross_entropy
from tests.bilora.test_models import start, train
from tests.bilora.test_trainer import dataset, tiny_vit
from tests.bilora.test_trainer_features import trainer


def batches() -> list[dict[str, torch.Tensor]]:
    examples = dataset()
    return [{key: torch.stack([e[key] for e in examples[i : i + 4]]) for key in examples[0]} for i in (0, 4, 8)]


def test_trainer_folder_checkpoint_and_model_lead_to_one_minimum(tmp_path: Path) -> None:
    run = trainer(tmp_path, rho=0.5, learning_rate=0.05, save_strategy="steps", save_steps=8)
    run.train()
    run.save_model(str(tmp_path / "result"))
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    found = minimum(run)
    sources = [
        minimum(run.model),
        minimum(tmp_path / "result", base=tiny_vit()),
        minimum(tmp_path / "checkpoint-8", base=tiny_vit()),
    ]
    expected = run.evaluate(dataset())["eval_loss"]
    for one in (found, *sources):
        risk = one.risk(batches())
        assert risk.loss() == pytest.approx(expected, abs=1e-5)
        assert risk.num_params == sum(dict(one.model.named_parameters())[name].numel() for name in one.weight_names)
        for name, pair in adapter_factors(run.model, "primary").items():
            torch.testing.assert_close(one.updates[f"{name}.weight"], pair.delta_weight.detach(), atol=1e-6, rtol=1e-4)
        space = one.subspace(risk.layout)
        update = risk.layout.join({name: one.updates[name] for name in one.weight_names})
        assert float(space.project(update).norm() / update.norm()) == pytest.approx(1, abs=1e-4)
    for one in (found, sources[0], sources[2]):
        assert set(one.factors) == {"primary", "auxiliary"}
        for name, pair in adapter_factors(run.model, "auxiliary").items():
            torch.testing.assert_close(one.factors["auxiliary"][f"{name}.weight"][1], pair.B.detach())
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    with pytest.raises(ValueError, match="expected one of \\['primary'\\], got 'auxiliary'"):
        sources[1].subspace(sources[1].risk(batches()).layout, "auxiliary")


@pytest.mark.parametrize("kind", ["pissa", "lora_ga", "dora"])
def test_updates_are_against_the_model_before_training(tmp_path: Path, kind: str) -> None:
    found = minimum(train(start(kind), tmp_path, kind))
    before = dict(tiny_vit().named_parameters())
    after = dict(found.model.named_parameters())
    for name in found.weight_names:
        torch.testing.assert_close(found.updates[name], after[name].detach() - before[name], atol=1e-5, rtol=1e-4)


def test_transposed_weights_have_transposed_spaces() -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=8, pad_token_id=0)
    model = attach(GPT2LMHeadModel(config).double(), BiLoraConfig(r=2, target_modules=["c_attn", "attn.c_proj"]))
    model.double()
    with torch.no_grad():
        for pair in adapter_factors(model, "primary").values():
            pair.B.normal_()
    found = minimum(model)
    tokens = torch.arange(12).view(2, 6)
    risk = found.risk([{"input_ids": tokens, "labels": tokens}], loss=next_token_cross_entropy)
    assert set(risk.layout.transposed) == set(found.weight_names)
    update = risk.layout.join(found.updates)
    for kind in ("column", "row", "tangent"):
        space = found.subspace(risk.layout, kind=kind)
        torch.testing.assert_close(space.project(update), update)


def test_peft_models_plain_models_and_folders_of_others(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    adapted = get_peft_model(copy.deepcopy(network), LoraConfig(r=2, target_modules=["0"]))
    data = [(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))]
    found = minimum(adapted)
    assert found.weight_names == ("0.weight",) and set(found.factors) == {"default"}
    assert found.risk(data).num_params == 20
    whole = minimum(network, base=network)
    assert whole.risk(data).num_params == 43 and float(whole.updates["0.weight"].abs().sum()) == 0
    adapted.save_pretrained(tmp_path / "adapter")
    assert minimum(tmp_path / "adapter", base=network).weight_names == ("0.weight",)
    tiny_vit().save_pretrained(tmp_path / "whole")
    assert minimum(tmp_path / "whole").risk(batches()).loss() == pytest.approx(
        minimum(tiny_vit()).risk(batches()).loss()
    )
    with pytest.raises(ValueError, match=r"base: .* holds an adapter"):
        minimum(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"neither adapter_config.json nor config.json"):
        minimum(tmp_path)
    with pytest.raises(ValueError, match="source: expected a trainer, a model or a folder, got int"):
        minimum(3)
