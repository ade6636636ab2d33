"""Trainers, optimizers and adapters of others: what steps is hooked, and a minimum computes what was trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from bilora import BiLoraConfig, BiLoraTrainer, attach, minimum
from landscape import EmpiricalRisk


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        outputs = self.b(torch.tanh(self.a(x)))
        return outputs if labels is None else {"loss": F.cross_entropy(outputs, labels), "logits": outputs}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder), use_cpu=True, learning_rate=0.05, report_to=[], save_strategy="no", disable_tqdm=True,
        **{"max_steps": 6} | options,
    )  # fmt: skip


def data() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(32, 5, generator=generator), torch.randint(0, 3, (32,), generator=generator)
    return [{"x": x, "labels": int(y)} for x, y in zip(inputs, labels, strict=True)]


SETTINGS = BiLoraConfig(r=2, target_modules=["a", "b"], rho=0.1)


def descends(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-2)


class Overriding(BiLoraTrainer):
    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = descends(self.model)
        return self.optimizer


class BySgd(Trainer):
    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=5e-2)
        return self.optimizer


class Combined(BiLoraTrainer, BySgd):
    pass


@pytest.mark.parametrize("kind", [BiLoraTrainer, Overriding, Combined])
def test_whichever_optimizer_steps_calls_the_method(kind: type[BiLoraTrainer], tmp_path: Path) -> None:
    trainer = kind(Net(), arguments(tmp_path, max_steps=12), bilora=SETTINGS, train_dataset=data())
    if kind is BiLoraTrainer:
        trainer.optimizer = descends(trainer.model)
    trainer.train()
    assert trainer.method.metrics()["auxiliary_norm"] <= 0.1 * (1 + 1e-5)
    assert trainer.method.metrics()["clip_rate"] > 0.5
    assert isinstance(trainer.method.optimizer, torch.optim.SGD if kind is Combined else torch.optim.AdamW)


def test_an_optimizer_of_other_weights_is_refused_at_the_first_step(tmp_path: Path) -> None:
    trainer = BiLoraTrainer(Net(), arguments(tmp_path), bilora=SETTINGS, train_dataset=data())
    trainer.optimizer = torch.optim.AdamW(Net().parameters())
    with pytest.raises(ValueError, match="of which 0 are among"):
        trainer.train()


def test_a_model_trained_in_mixed_precision_is_measured_in_its_own(tmp_path: Path) -> None:
    trainer = Trainer(Net(), arguments(tmp_path, bf16=True), train_dataset=data())
    trainer.train()
    clean = Net()
    clean.load_state_dict(trainer.model.state_dict())
    batch = (torch.stack([one["x"] for one in data()]), torch.tensor([one["labels"] for one in data()]))
    found = minimum(trainer).model
    losses = [EmpiricalRisk(model, [batch]).loss() for model in (trainer.model, found, clean)]
    assert losses[0] == losses[1] == losses[2]
    with torch.no_grad():
        assert torch.equal(found(batch[0]), clean(batch[0]))


def test_a_cooled_auxiliary_ascends_again_in_a_second_training(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"rho_schedule": "cooled"})
    trainer = BiLoraTrainer(
        Net(), arguments(tmp_path), bilora=settings, train_dataset=data(),
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}),
    )  # fmt: skip
    trainer.train()
    assert trainer.method.metrics()["auxiliary_norm"] == 0
    trainer.method.restart()
    assert all(bool(pair.A.any()) and not bool(pair.B.any()) for pair in trainer.method.auxiliary.values())


def test_a_seed_changed_after_construction_is_that_of_a_model_made_anew(tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        return Net()

    def made(seed: int, changed: int) -> Tensor:
        trainer = BiLoraTrainer(
            args=arguments(tmp_path, seed=seed), bilora=SETTINGS, train_dataset=data(), model_init=fresh
        )
        trainer.args.seed = changed
        trainer.call_model_init()
        return next(iter(trainer.method.primary.values())).A.detach().clone()

    assert torch.equal(made(1, 5), made(5, 5)) and not torch.equal(made(1, 5), made(1, 1))


def test_heads_that_peft_would_train_are_asked_for() -> None:
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    with pytest.raises(ValueError, match=r"classifier or score.*modules_to_save"):
        BiLoraConfig.from_lora(lora)
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    theirs = peft.get_peft_model(BertForSequenceClassification(config), copy.deepcopy(lora))
    ours = attach(BertForSequenceClassification(config), BiLoraConfig.from_lora(lora, modules_to_save=["classifier"]))
    trained = [
        {name for name, p in model.named_parameters() if p.requires_grad and "classifier" in name}
        for model in (theirs, ours)
    ]
    assert len(trained[0]) == len(trained[1]) == 2


def test_pissa_on_an_untied_head_is_saved_as_it_was_trained(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=16,
        vocab_size=20, tie_word_embeddings=False,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    tokens = [{"input_ids": torch.randint(0, 20, (6,))} for _ in range(16)]
    rows = [one | {"labels": one["input_ids"]} for one in tokens]
    settings = BiLoraConfig(primary="pissa", target_modules=["q_proj", "lm_head"], r=2, rho=0.05)
    trainer = BiLoraTrainer(copy.deepcopy(base), arguments(tmp_path), bilora=settings, train_dataset=rows)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    ids = tokens[0]["input_ids"][None]
    with torch.no_grad():
        trained = trainer.model.eval()(input_ids=ids).logits
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "saved").eval()(input_ids=ids).logits
        read = minimum(tmp_path / "saved", base=base).model.eval()(input_ids=ids).logits
    torch.testing.assert_close(loaded, trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read, trained, rtol=1e-4, atol=1e-4)


def adapted(model: nn.Module, targets: list[str], size: float = 1.0) -> peft.PeftModel:
    found = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_().mul_(size)
    return found


class Twice(nn.Module):
    """One layer at two places, of which an adapter takes the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@torch.no_grad()
def test_a_layer_at_two_places_is_merged_at_the_adapted_one_alone() -> None:
    model, x = adapted(Twice(), ["a"]), torch.randn(3, 4)
    expected = model(x)
    torch.testing.assert_close(minimum(model).model(x), expected)
    model.merge_adapter()
    found = minimum(model)
    torch.testing.assert_close(found.model(x), expected)
    assert all(float(update.norm()) > 0.1 for update in found.updates.values())


@torch.no_grad()
def test_adapters_that_are_switched_off_are_not_merged() -> None:
    model, x = adapted(Net(), ["a", "b"]), torch.randn(3, 5)
    model.base_model.disable_adapter_layers()
    torch.testing.assert_close(minimum(model).model(x), model(x))


@pytest.mark.parametrize("size", [3e-3, 3e-2])
def test_half_precision_weights_lose_nothing_of_what_is_merged_into_them(size: float) -> None:
    model = adapted(nn.Sequential(nn.Linear(16, 16)).to(torch.bfloat16), ["0"], size)
    (update,) = minimum(model).updates.values()
    torch.testing.assert_close(update, model.base_model.model[0].get_delta_weight("default"), rtol=1e-3, atol=1e-6)


def test_adapters_and_layers_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(ValueError, match="0 holds an adapter of a Embedding"):
        minimum(adapted(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)), ["0", "1"]))
    for normed in (nn.utils.weight_norm(nn.Linear(5, 6)), nn.utils.spectral_norm(nn.Linear(5, 6))):
        with pytest.raises(ValueError, match="computed from others"):
            attach(nn.Sequential(normed), BiLoraConfig(r=2, target_modules=["0"]))


def test_a_layer_called_with_one_vector_trains() -> None:
    class Query(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.p = nn.Parameter(torch.randn(5)), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.p(self.q)

    model = attach(Query(), BiLoraConfig(r=2, target_modules=["p"]))
    model(torch.zeros(2, 3)).sum().backward()
    assert model(torch.zeros(2, 3)).shape == (2, 3)
