"""A folder that one training after another saves into holds the last one's model, and nothing of those before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from bilora import BiLoraConfig, BiLoraTrainer, attach, bilora_optimizer, minimum
from bilora.optimizers import method_optimizer
from tests.bilora.small_bert import bert
from tests.bilora.test_where_trainer_stood import Net, arguments, dataset, together

KINDS: dict[str, BiLoraConfig] = {
    "lora": BiLoraConfig(method="lora", r=2, target_modules=["a"]),
    "bilora": BiLoraConfig(method="bilora", r=2, target_modules=["a"], rho=0.3),
    "pissa": BiLoraConfig(method="lora", primary="pissa", r=2, target_modules=["a"]),
    "full primary": BiLoraConfig(method="bilora", primary="full", r=2, target_modules=["a"], rho=0.3),
    "sam": BiLoraConfig(method="sam", rho=0.1),
}


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def trained(folder: Path, kind: str, **changes: Any) -> BiLoraTrainer:
    data = dataset()
    trainer = BiLoraTrainer(
        net(), arguments(folder, **changes), bilora=KINDS[kind], train_dataset=data, eval_dataset=data,
        data_collator=together,
    )  # fmt: skip
    trainer.train()
    return trainer


def loss_of(model: torch.nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        return float(model(**together(dataset())).loss)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("then", KINDS)
def test_what_is_saved_last_is_what_is_there(tmp_path: Path, first: str, then: str) -> None:
    checkpoints = {"save_strategy": "steps", "save_steps": 3}
    trained(tmp_path, first, **checkpoints).save_model()
    trainer = trained(tmp_path, then, **checkpoints)
    trainer.save_model()
    expected = loss_of(trainer.model)
    if then == "sam":  # a plain module's weights lie in no folder that says how to make it
        assert not list((tmp_path / "out").rglob("adapter_config.json"))
        return
    if then != "pissa":  # of which checkpoints are refused: they hold no plain adapter
        kept = minimum(tmp_path / "out" / "checkpoint-6", base=net()).model
        assert loss_of(kept) == pytest.approx(expected, rel=1e-5)
    if then != "full primary":
        assert loss_of(minimum(tmp_path / "out", base=net()).model) == pytest.approx(expected, rel=1e-5)
    else:
        assert not (tmp_path / "out" / "adapter_config.json").exists()


@pytest.mark.parametrize(("first", "then"), [("full primary", "bilora"), ("pissa", "lora")])
def test_the_best_of_a_run_is_none_of_another(tmp_path: Path, first: str, then: str) -> None:
    options = {
        "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
        "load_best_model_at_end": True,
    }  # fmt: skip
    trained(tmp_path, first, **options)
    again, fresh = trained(tmp_path, then, **options), trained(tmp_path / "fresh", then, **options)
    assert again.evaluate()["eval_loss"] == fresh.evaluate()["eval_loss"] == again.state.best_metric
    resumed = BiLoraTrainer(
        net(), arguments(tmp_path, **options), bilora=KINDS[then], train_dataset=dataset(), eval_dataset=dataset(),
        data_collator=together,
    )  # fmt: skip
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    for name, weight in fresh.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight)


def test_files_that_no_run_of_ours_left_stay(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    trained(tmp_path, "sam").save_model()
    assert (tmp_path / "out" / "adapter_config.json").exists()


def test_frozen_weights_are_refused_under_a_full_primary() -> None:
    with pytest.raises(ValueError, match="has nothing to train, all weights are frozen"):
        attach(net().requires_grad_(False), KINDS["full primary"], seed=0)


def test_configurations_of_pefts_are_taken_as_it_makes_them(tmp_path: Path) -> None:
    get_peft_model(bert(), LoraConfig(r=4, target_modules=["query"])).save_pretrained(tmp_path)
    assert BiLoraConfig.from_lora(LoraConfig.from_pretrained(str(tmp_path))).r == 4
    live = get_peft_model(bert(), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"])).peft_config["default"]
    assert attach(bert(), BiLoraConfig.from_lora(live), seed=0).bilora_method.name == "bilora"
    given = LoraConfig(r=4, target_modules=["query"], modules_to_save=["pooler"])
    merged = BiLoraConfig.from_lora(given, modules_to_save=["classifier"], r=8)
    assert (merged.r, merged.modules_to_save) == (8, ["classifier"])


def test_an_adapter_that_is_active_on_some_tokens_has_no_merged_weight() -> None:
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    some = LoraConfig(r=2, target_modules=["q_proj"], alora_invocation_tokens=[3], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="aLoRA"):
        minimum(get_peft_model(LlamaForCausalLM(config), some))


def test_steps_are_asked_for_where_something_follows_them() -> None:
    flat = BiLoraConfig(method="flat_lora", r=2, target_modules=["a"])
    cosine = BiLoraConfig(method="lora_sam_full", r=2, target_modules=["a"], rho=0.1, rho_schedule="cosine")
    for config in (flat, cosine):
        method = attach(net(), config, seed=0).bilora_method
        with pytest.raises(ValueError, match="num_steps: expected a number"):
            method_optimizer(method, torch.optim.SGD, lr=0.1)
        method_optimizer(method, torch.optim.SGD, num_steps=4, lr=0.1)
        assert method.progress == 0
    model = attach(net(), KINDS["bilora"], seed=0)
    bilora_optimizer(model, torch.optim.SGD, lr=0.1)
    assert model.bilora_method.rho == 0.3


def test_an_inner_ascent_counts_labels_as_the_trainer_does(tmp_path: Path) -> None:
    """Causal models have one label less a sequence than tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    tokens = torch.randint(20, (6, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row.clone()} for row in tokens]
    data[1]["labels"][2:] = -100
    seen: list[float] = []

    class Watched(BiLoraTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            seen.append(self.method.batches_per_step)
            return loss

    inner = BiLoraConfig(method="bilora_inner", r=2, target_modules=["q_proj"], rho=0.1)
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 1}
    trainer = Watched(
        LlamaForCausalLM(config), arguments(tmp_path, **options), bilora=inner, train_dataset=data[:2],
        data_collator=lambda rows: {key: torch.stack([row[key] for row in rows]) for key in rows[0]},
    )  # fmt: skip
    trainer.get_train_dataloader = (
        lambda: torch.utils.data.DataLoader(  # type: ignore[method-assign]
            data[:2], batch_size=1, collate_fn=trainer.data_collator
        )
    )
    trainer.train()
    assert seen == pytest.approx([8 / 7, 8 / 1])
