"""Which models the methods take, and what becomes of weights that several layers share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from bilora import BiLoraConfig, BiLoraTrainer, attach, minimum
from tests.bilora.small_bert import IDS, TEXTS, bert, gpt2, settings, trainer


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found


def through_peft() -> nn.Module:
    model = bert()
    get_peft_model(model, LoraConfig(target_modules=["query"]))
    return model


def through_transformers() -> nn.Module:
    model = bert()
    model.add_adapter(LoraConfig(target_modules=["value"]))
    return model


def with_a_wrapped_head() -> nn.Module:
    model = bert()
    get_peft_model(model, LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    return model


@pytest.mark.parametrize("make", [through_peft, through_transformers, with_a_wrapped_head])
@pytest.mark.parametrize("method", ["full", "sam", "lora", "bilora"])
def test_a_model_that_adapters_were_put_into_is_refused(method: str, make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"model: expected a plain model, got one that holds an adapter at .*anew"):
        attach(make(), settings(method))
    with pytest.raises(ValueError, match=r"source: the model holds an adapter at .*PeftModel around it"):
        minimum(make())


def test_a_second_trainer_on_one_model_is_refused(tmp_path: Path) -> None:
    model = bert()
    trainer(tmp_path, settings("lora"), model).train()
    with pytest.raises(ValueError, match="that was trained before holds them"):
        trainer(tmp_path, BiLoraConfig(method="full"), model)


@pytest.mark.parametrize("primary", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("targets", [["lm_head"], ["lm_head", "c_attn"]])
def test_the_minimum_of_a_tied_head_computes_what_was_trained(tmp_path: Path, primary: str, targets: Any) -> None:
    config = settings("lora", primary=primary, target_modules=targets)
    run = trainer(tmp_path, config, gpt2(), data=TEXTS, max_steps=6)
    run.train()
    trained = logits(run.model)
    assert (trained - logits(gpt2())).abs().max() > 0.05
    found = minimum(run)
    torch.testing.assert_close(logits(found.model), trained, rtol=1e-4, atol=1e-4)
    assert "lm_head.weight" in found.weight_names and len(found.weight_names) == (1 if len(targets) == 1 else 3)
    torch.testing.assert_close(found.model.transformer.wte.weight.detach(), gpt2().transformer.wte.weight.detach())
    found.model.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(minimum(tmp_path / "merged").model), trained, rtol=1e-4, atol=1e-4)
    run.save_model(str(tmp_path / "saved"))
    torch.testing.assert_close(logits(PeftModel.from_pretrained(gpt2(), tmp_path / "saved")), trained)


def test_a_kind_that_moves_a_tied_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"primary: pissa .* lm_head is transformer.wte.weight's too"):
        attach(gpt2(), settings("lora", primary="pissa", target_modules=["lm_head"]))
    shared = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    shared[1].weight = shared[0].weight
    with pytest.raises(ValueError, match=r"primary: pissa .* 0 is 1.weight's too"):
        attach(shared, settings("lora", primary="pissa", target_modules=["0"]))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        found = self.head(self.encoder(x).mean(1))
        out = {"logits": found}
        return out if labels is None else out | {"loss": nn.functional.cross_entropy(found, labels)}


def test_layers_that_evaluation_computes_past_are_refused(tmp_path: Path) -> None:
    inputs = torch.randn(12, 4, 8, generator=torch.Generator().manual_seed(0))
    data = [{"x": x, "labels": i % 3} for i, x in enumerate(inputs)]
    config = settings("bilora_stale", target_modules=["linear1", "linear2"])
    with pytest.raises(
        ValueError, match=r"target_modules: encoder.linear1 is part of a torch.nn.TransformerEncoderLay"
    ):
        attach(Encoder(), config)
    attach(Encoder(), settings(target_modules=["head"]))
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        run = trainer(tmp_path, config, Encoder(), data=data, label_names=["labels"], max_steps=20)
        run.train()
        merged = minimum(run).model.eval()(x=inputs, labels=torch.arange(12) % 3)["loss"]
        assert run.evaluate()["eval_loss"] == pytest.approx(float(merged), rel=1e-5)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("given", [{"method": "lora"}, None, LoraConfig()])
def test_settings_of_another_kind_are_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"bilora: expected a BiLoraConfig, got {type(given).__name__}"):
        BiLoraTrainer(bert(), bilora=given)
