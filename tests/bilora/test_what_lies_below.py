"""What an auxiliary over other adapters could hide: heads, names, buffers, frozen and tied weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForSequenceClassification, Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from bilora import BiLoraConfig, BiLoraTrainer, attach, build_method, minimum, save_adapter
from bilora.adapters import adapted_layers
from tests.bilora.test_beside_other_adapters import KINDS, examples, logits, tiny_gpt2
from tests.bilora.test_trainer import dataset, tiny_vit


def arguments(place: Path, **options: Any) -> TrainingArguments:
    chosen = {"max_steps": 4, "save_strategy": "no", "per_device_train_batch_size": 5, "learning_rate": 0.05} | options
    return TrainingArguments(
        output_dir=str(place), report_to=[], disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
        logging_strategy="no", seed=3, **chosen,
    )  # fmt: skip


def trained(place: Path, model: nn.Module, data: list[Any] | None = None, **settings: Any) -> BiLoraTrainer:
    options = {key: settings.pop(key) for key in list(settings) if key in ("save_strategy", "save_steps")}
    config = BiLoraConfig(**({"method": "bilora", "r": 2, "rho": 0.3, "target_modules": ["q_proj", "fc1"]} | settings))
    run = BiLoraTrainer(model, arguments(place, **options), bilora=config, train_dataset=data or dataset())
    run.train()
    return run


def ia3(model: nn.Module, name: str = "default", **options: Any) -> PeftModel:
    settings = {"target_modules": ["q_proj", "fc1"], "feedforward_modules": []} | options
    return get_peft_model(model, IA3Config(**settings), adapter_name=name)


@pytest.mark.parametrize("primary", ["ia3", "lora", "given"])
def test_label_smoothing_shifts_what_a_causal_model_shifts(tmp_path: Path, primary: str) -> None:
    """At a radius and rate of 0 the first loss is that of the plain model under transformers' own trainer."""
    smooth = {"label_smoothing_factor": 0.1, "max_steps": 1, "per_device_train_batch_size": 10, "learning_rate": 0.0}
    losses = []

    class Plain(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(float(loss))
            return loss

    Plain(tiny_gpt2(), arguments(tmp_path, **smooth), train_dataset=examples("prefix")).train()
    model, given = tiny_gpt2(), {"primary": primary}
    if primary == "given":
        model, given = ia3(model, target_modules=["c_attn"], fan_in_fan_out=True), {"primary": "full"}
    config = BiLoraConfig(method="bilora", r=2, rho=0.0, target_modules=["c_attn"], **given)
    run = BiLoraTrainer(model, arguments(tmp_path, **smooth), bilora=config, train_dataset=examples("prefix"))
    run.train()
    assert run.step_losses[0] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("method", ["bilora", "full"])
def test_an_adapter_of_any_name_is_saved_where_it_is_loaded_from(tmp_path: Path, method: str) -> None:
    own = "mine" if method == "bilora" else "auxiliary"
    model = ia3(tiny_vit(), modules_to_save=["classifier"])
    model.add_adapter(own, IA3Config(target_modules=["fc2"], feedforward_modules=[], modules_to_save=["classifier"]))
    model.set_adapter(own)
    whole = {"primary": "full", "r": 2, "rho": 0.3, "target_modules": ["fc2"]} if method == "bilora" else {}
    config = BiLoraConfig(method=method, **whole)
    run = BiLoraTrainer(model, arguments(tmp_path), bilora=config, train_dataset=dataset())
    run.train()
    run.save_model(str(tmp_path / "result"))
    right = logits(run.model, "ia3")
    assert not torch.allclose(right, logits(tiny_vit(), "ia3"), atol=1e-3)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(tiny_vit(), tmp_path / "result"), "ia3"), right)
    torch.testing.assert_close(logits(minimum(tmp_path / "result", base=tiny_vit()).model, "ia3"), right)


def test_what_peft_would_not_save_is_refused_before_training() -> None:
    settings = BiLoraConfig(method="bilora", primary="full", r=2, target_modules=["q_proj"])
    model = ia3(tiny_vit())
    model.get_base_model().classifier.requires_grad_(True)
    for config in (settings, BiLoraConfig(method="full")):
        with pytest.raises(ValueError, match=r"model: it trains .*classifier.weight beside its adapter 'default'"):
            build_method(model, config, seed=0)
    model = ia3(tiny_vit()).requires_grad_(False)
    with pytest.raises(ValueError, match=r"is_trainable=True"):
        build_method(model, settings, seed=0)


def test_a_frozen_head_stays_frozen(tmp_path: Path) -> None:
    model = ia3(tiny_vit(), modules_to_save=["classifier"])
    head = [p for name, p in model.named_parameters() if "classifier" in name]
    for parameter in head:
        parameter.requires_grad_(False)
    before = [p.detach().clone() for p in head]
    trained(tmp_path, model, primary="full")
    assert not any(p.requires_grad for p in head)
    assert all(torch.equal(p, one) for p, one in zip(head, before, strict=True))


class Named(nn.Module):
    """An adapter of one's own whose parts are called as PEFT calls LoRA's."""

    def __init__(self, below: nn.Module) -> None:
        super().__init__()
        self.below, self.lora_down = below, nn.Linear(16, 2, bias=False)
        self.lora_up = nn.Linear(2, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.below(x)
        return out + self.lora_up(self.lora_down(x))


def with_named() -> nn.Module:
    model = tiny_vit().requires_grad_(False)
    torch.manual_seed(3)
    model.vit.layernorm = Named(model.vit.layernorm)
    return model


def test_modules_named_as_lora_are_kept_in_checkpoints(tmp_path: Path) -> None:
    config = {"method": "bilora_stale", "primary": "full", "target_modules": ["fc1"]}
    whole = trained(tmp_path, with_named(), save_strategy="steps", save_steps=2, **config)
    found = minimum(tmp_path / "checkpoint-4", base=with_named())
    torch.testing.assert_close(logits(found.model, "ia3"), logits(whole.model, "ia3"))
    resumed = BiLoraTrainer(
        with_named(), arguments(tmp_path), bilora=BiLoraConfig(r=2, rho=0.3, **config), train_dataset=dataset()
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for (name, expected), got in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(expected, got), name


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.b(self.norm(self.a(x)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def normed() -> Normed:
    torch.manual_seed(2)
    return Normed()


@pytest.mark.parametrize("method", ["bilora", "lora"])
def test_batch_statistics_that_training_moved_lie_beside_the_adapter(tmp_path: Path, method: str) -> None:
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(1)) + 2
    data = [{"x": row, "labels": torch.tensor(i % 3)} for i, row in enumerate(x)]
    own = {"r": 2, "rho": 0.1} if method == "bilora" else {}
    config = BiLoraConfig(method=method, primary="ia3", target_modules=["a", "b"], **own)
    run = BiLoraTrainer(normed(), arguments(tmp_path), bilora=config, train_dataset=data)
    run.train()
    with pytest.warns(UserWarning, match="training moved buffers of the frozen model"):
        run.save_model(str(tmp_path / "result"))
    found = minimum(tmp_path / "result", base=normed())
    with torch.no_grad():
        torch.testing.assert_close(found.model.eval()(x).logits, run.model.eval()(x).logits)


def test_ia3_adapts_what_is_named_and_no_ends_of_names() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.inner = nn.Linear(8, 8), nn.Sequential()
            self.inner.fc = nn.Linear(8, 8)

    for method in ("lora", "bilora"):
        own = {"r": 2} if method == "bilora" else {}
        model = build_method(
            Nested(), BiLoraConfig(method=method, primary="ia3", target_modules="fc", **own), seed=0
        ).model
        assert [
            name for name, p in model.named_parameters() if p.requires_grad and "ia3" in name and "inner" in name
        ] == []
        assert len(adapted_layers(model)) == (method == "bilora")


@pytest.mark.parametrize("targets", [["query", "dense"], "all-linear"])
def test_layers_of_a_saved_head_get_no_auxiliary(tmp_path: Path, targets: Any) -> None:
    run = trained(tmp_path, _roberta_ia3(), _texts(), primary="full", target_modules=targets)
    names = list(adapted_layers(run.model))
    assert names and not [name for name in names if "classifier" in name or "base_layer" in name]
    found = minimum(run)
    torch.testing.assert_close(_of_texts(found.model), _of_texts(run.model))


def test_a_head_of_several_layers_is_merged(tmp_path: Path) -> None:
    run = trained(
        tmp_path, _roberta(), _texts(), primary="ia3", target_modules=["query"], modules_to_save=["classifier"]
    )
    run.save_model(str(tmp_path / "result"))
    for found in (minimum(run), minimum(tmp_path / "result", base=_roberta())):
        torch.testing.assert_close(_of_texts(found.model), _of_texts(run.model))


def _roberta() -> nn.Module:
    torch.manual_seed(0)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=16, num_labels=3, **still,
        )
    )  # fmt: skip


def _roberta_ia3() -> PeftModel:
    settings = IA3Config(task_type="SEQ_CLS", target_modules=["query", "value"], feedforward_modules=[])
    return get_peft_model(_roberta(), settings)


def _texts() -> list[dict[str, Tensor]]:
    ids = torch.randint(2, 20, (10, 6), generator=torch.Generator().manual_seed(4))
    return [{"input_ids": row, "labels": torch.tensor(i % 3)} for i, row in enumerate(ids)]


@torch.no_grad()
def _of_texts(model: nn.Module) -> Tensor:
    out: Tensor = model.eval()(input_ids=torch.stack([one["input_ids"] for one in _texts()])).logits
    return out


@pytest.mark.parametrize("targets", [["q_proj", "fc1"], ["c_attn"]])
def test_a_checkpoint_of_ia3_has_a_minimum_on_the_plain_model(tmp_path: Path, targets: list[str]) -> None:
    kind, plain = ("prefix", tiny_gpt2) if targets == ["c_attn"] else ("ia3", tiny_vit)
    run = trained(
        tmp_path, plain(), examples(kind), primary="ia3", target_modules=targets, save_strategy="steps", save_steps=4
    )
    found = minimum(tmp_path / "checkpoint-4", base=plain())
    torch.testing.assert_close(logits(found.model, kind), logits(run.model, kind))
    assert found.weight_names == minimum(run).weight_names and found.updates


def test_a_base_without_what_was_trained_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, KINDS["ia3"](), primary="full", save_strategy="steps", save_steps=4)
    with pytest.raises(ValueError, match=r"base: .*checkpoint-4 holds .*, which the given model has not"):
        minimum(tmp_path / "checkpoint-4", base=tiny_vit())


@pytest.mark.parametrize("kind", ["prefix", "norms", "prompt"])
def test_what_has_no_adapted_matrices_is_measured_as_a_whole(tmp_path: Path, kind: str) -> None:
    layers = ["fc1"] if kind == "norms" else ["c_attn"]
    run = BiLoraTrainer(
        KINDS[kind](), arguments(tmp_path), bilora=BiLoraConfig(method="full"), train_dataset=examples(kind)
    )
    run.train()
    found = minimum(run)
    torch.testing.assert_close(logits(found.model, kind), logits(run.model, kind))
    assert found.weight_names == tuple(name for name, _ in found.model.named_parameters())
    beside = trained(tmp_path, KINDS[kind](), examples(kind), primary="full", target_modules=layers)
    beside.save_model(str(tmp_path / "result"))
    again = minimum(tmp_path / "result", base=tiny_vit() if kind == "norms" else tiny_gpt2())
    torch.testing.assert_close(logits(again.model, kind), logits(beside.model, kind))
    assert again.weight_names == minimum(beside).weight_names and len(again.weight_names) == 1


@pytest.mark.parametrize("primary", ["full", "ia3"])
def test_an_auxiliary_of_a_tied_layer_moves_that_layer_alone(tmp_path: Path, primary: str) -> None:
    model: nn.Module = tiny_gpt2()
    layers = ["lm_head"]
    if primary == "full":
        model = ia3(model, task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    run = trained(
        tmp_path, model, examples("prefix"), primary=primary, rho=5.0, auxiliary_lr=0.5, target_modules=layers
    )
    found = minimum(run)
    ((name, (a, b)),) = found.factors["auxiliary"].items()
    assert name == "lm_head.weight"
    scaling = next(iter(adapted_layers(run.model).values())).scaling["auxiliary"]
    with torch.no_grad():
        dict(found.model.named_parameters())[name].add_(scaling * b @ a)
    run.method.engage()
    torch.testing.assert_close(logits(found.model, "prefix"), logits(run.model, "prefix"), rtol=1e-4, atol=1e-5)


def test_tied_layers_beside_which_all_weights_descend_have_checkpoints(tmp_path: Path) -> None:
    run = trained(
        tmp_path, tiny_gpt2(), examples("prefix"), primary="full", target_modules=["lm_head"], save_strategy="steps",
        save_steps=4,
    )  # fmt: skip
    found = minimum(tmp_path / "checkpoint-4", base=tiny_gpt2())
    torch.testing.assert_close(logits(found.model, "prefix"), logits(run.model, "prefix"))
    assert found.weight_names == ("lm_head.weight",) == minimum(run).weight_names


@pytest.mark.parametrize("method", ["bilora", "lora"])
def test_loops_of_ones_own_save_ia3(tmp_path: Path, method: str) -> None:
    own = {"r": 2, "rho": 0.1} if method == "bilora" else {}
    model = attach(tiny_vit(), BiLoraConfig(method=method, primary="ia3", target_modules=["q_proj", "fc1"], **own))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_l" in name:
                parameter.mul_(1.7)
    model.bilora_method.deploy()
    save_adapter(model, "primary", tmp_path)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(tiny_vit(), tmp_path), "ia3"), logits(model, "ia3"))
    right = logits(model, "ia3")
    torch.testing.assert_close(logits(model.merge_and_unload(), "ia3"), right)


def test_ia3_alone_takes_no_rank() -> None:
    narrow = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    build_method(narrow, BiLoraConfig(method="lora", primary="ia3", target_modules=["1"]), seed=0)
    with pytest.raises(ValueError, match=re.escape("alpha, r: IA3 has neither rank nor alpha; expected none, got")):
        config = BiLoraConfig(method="lora", primary="ia3", target_modules=["1"], r=4, alpha=77.0)
        build_method(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), config, seed=0)
