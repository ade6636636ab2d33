"""What a user of `transformers.Trainer` and PEFT may count on, and what is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import Adafactor, RobertaConfig, RobertaForSequenceClassification, TrainingArguments

from bilora import METHODS, BiLoraConfig, BiLoraTrainer, attach, bilora_optimizer, build_method
from bilora.adapters import AUXILIARY, PRIMARY, adapted_layers, adapter_factors
from tests.bilora.conftest import config_of
from tests.bilora.test_trainer import dataset, tiny_vit
from tests.bilora.test_trainer_features import StopAt, trainer


def arguments(tmp_path: Path, **options: Any) -> TrainingArguments:
    settings = {
        "output_dir": str(tmp_path), "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.01,
        "save_strategy": "no", "logging_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True,
        "remove_unused_columns": False,
    }  # fmt: skip
    return TrainingArguments(**(settings | options))


TARGETS = {"r": 2, "target_modules": ["q_proj", "fc1"]}


def test_weight_decay_spares_biases_norms_and_the_auxiliary(tmp_path: Path) -> None:
    run = BiLoraTrainer(
        tiny_vit(), arguments(tmp_path, weight_decay=0.1), bilora=BiLoraConfig(method="full"), train_dataset=dataset()
    )
    decay = {id(p): group["weight_decay"] for group in run.create_optimizer().param_groups for p in group["params"]}
    for name, parameter in run.model.named_parameters():
        spared = name.endswith("bias") or "norm" in name
        assert decay[id(parameter)] == (0.0 if spared else 0.1), name
    run = trainer(tmp_path, weight_decay=0.1, modules_to_save=["classifier"])
    decay = {id(p): group["weight_decay"] for group in run.create_optimizer().param_groups for p in group["params"]}
    assert {decay[id(p)] for p in run.method.auxiliary_parameters()} == {0.0}
    assert {decay[id(pair.A)] for pair in run.method.primary.values()} == {0.1}


@pytest.mark.parametrize("method", ["full", "bilora"])
def test_the_asked_optimizer_trains(tmp_path: Path, method: str) -> None:
    run = BiLoraTrainer(
        tiny_vit(), arguments(tmp_path), bilora=config_of(method, **TARGETS), train_dataset=dataset(),
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.123}),
    )  # fmt: skip
    optimizer = run.create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    assert {group["lr"] for group in optimizer.param_groups} == {0.123}


def test_an_optimizer_of_ones_own_trains_or_is_refused(tmp_path: Path) -> None:
    model = tiny_vit()
    before = model.classifier.weight.detach().clone()
    run = BiLoraTrainer(
        model, arguments(tmp_path), bilora=BiLoraConfig(method="sam"), train_dataset=dataset(),
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None),
    )  # fmt: skip
    run.train()
    assert not torch.equal(run.model.classifier.weight, before)
    assert run.method.step == 4
    model = tiny_vit()
    with pytest.raises(ValueError, match="optimizer_cls_and_kwargs"):
        BiLoraTrainer(
            model, arguments(tmp_path), bilora=BiLoraConfig(**TARGETS), train_dataset=dataset(),
            optimizers=(torch.optim.AdamW(model.parameters()), None),
        )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(torch.optim.AdamW(model.parameters()), lambda _: 1.0)
    with pytest.raises(ValueError, match="a scheduler alone"):
        BiLoraTrainer(
            tiny_vit(), arguments(tmp_path), bilora=BiLoraConfig(**TARGETS), train_dataset=dataset(),
            optimizers=(None, schedule),
        )  # fmt: skip


@pytest.mark.parametrize("options", [{"optim": "adafactor"}, {"optim": "rmsprop"}, {"optim": "adagrad"}])
def test_optimizers_without_maximize_ascend(tmp_path: Path, options: dict) -> None:
    run = trainer(tmp_path, logging_strategy="steps", logging_steps=8, rho=0.05, **options)
    run.train()
    entry = next(entry for entry in run.state.log_history if "loss" in entry)
    assert entry["ascent_gain"] > 0


def test_adafactor_moves_the_auxiliary_up_its_gradient() -> None:
    model = attach(nn.Sequential(nn.Linear(6, 5)), BiLoraConfig(r=2, rho=10.0, target_modules=["0"]))
    optimizer = bilora_optimizer(model, Adafactor, lr=0.1, scale_parameter=False, relative_step=False)
    pair = adapter_factors(model, AUXILIARY)["0"]
    x = torch.randn(7, 6)
    model(x).square().mean().backward()
    gradient = pair.B.grad.clone()
    optimizer.step()
    assert float((pair.B.detach() * gradient).sum()) > 0
    assert torch.equal(pair.B.grad, gradient)


def test_model_init_gives_every_training_a_fresh_model(tmp_path: Path) -> None:
    run = BiLoraTrainer(
        model_init=tiny_vit, args=arguments(tmp_path), bilora=BiLoraConfig(**TARGETS, rho=0.05), train_dataset=dataset()
    )
    results = []
    for _ in range(2):
        run.train()
        results.append([p.detach().clone() for p in run.model.parameters()])
        assert run.model is run.method.model and run.method.step == 4
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert any(float(pair.B.abs().sum()) > 0 for pair in run.method.primary.values())


class Plain(nn.Module):
    """A module of one's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(torch.tanh(self.body(pixel_values.flatten(1))))
        loss = nn.functional.cross_entropy(logits, labels) if labels is not None else None
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize("method", ["full", "sam", "bilora"])
def test_plain_modules_resume_and_load_their_best(tmp_path: Path, method: str) -> None:
    options = {
        "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
        "load_best_model_at_end": True, "max_steps": 6, "learning_rate": 0.1,
    }  # fmt: skip

    def run(folder: str, **extra: Any) -> BiLoraTrainer:
        config = config_of(method, r=2, rho=0.05, target_modules=["body"])
        return BiLoraTrainer(
            Plain(), arguments(tmp_path / folder, **options), bilora=config, train_dataset=dataset(),
            eval_dataset=dataset(), **extra,
        )  # fmt: skip

    whole = run("whole")
    whole.train()
    best = min(entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry)
    assert whole.evaluate()["eval_loss"] == pytest.approx(best, abs=1e-6)
    run("part", callbacks=[StopAt(2)]).train()
    again = run("part")
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_clip_rate_goes_on_after_resuming(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 4, "logging_strategy": "steps", "logging_steps": 8, "rho": 1e-4}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    trainer(tmp_path / "part", callbacks=[StopAt(4)], **options).train()
    resumed = trainer(tmp_path / "part", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-4"))
    rates = [[e["clip_rate"] for e in run.state.log_history if "clip_rate" in e][-1] for run in (whole, resumed)]
    assert rates[0] == rates[1] > 0.8


def test_training_leaves_the_model_deployed(tmp_path: Path) -> None:
    run = trainer(tmp_path, rho=5.0, learning_rate=0.1)
    run.train()
    images = torch.stack([example["pixel_values"] for example in dataset()])
    run.save_model(str(tmp_path / "result"))
    saved = PeftModel.from_pretrained(tiny_vit(), str(tmp_path / "result")).eval()
    with torch.no_grad():
        expected = saved(pixel_values=images).logits
        run.model.eval()
        torch.testing.assert_close(run.model(pixel_values=images).logits, expected)
        merged = run.model.merge_and_unload()
        torch.testing.assert_close(merged(pixel_values=images).logits, expected, rtol=1e-4, atol=1e-5)


def roberta() -> RobertaForSequenceClassification:
    torch.manual_seed(0)
    config = RobertaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20, pad_token_id=1,
    )  # fmt: skip
    return RobertaForSequenceClassification(config)


def test_targets_inside_a_saved_module_get_no_adapter(tmp_path: Path) -> None:
    tokens = {"input_ids": torch.arange(2, 14).view(2, 6), "labels": torch.tensor([0, 1])}
    data = [{key: value[i] for key, value in tokens.items()} for i in range(2)]
    config = BiLoraConfig(r=2, target_modules=["query", "dense"], modules_to_save=["classifier"], rho=0.1)
    run = BiLoraTrainer(roberta(), arguments(tmp_path), bilora=config, train_dataset=data)
    assert not [name for name in adapted_layers(run.model) if "classifier" in name]
    run.train()
    run.save_model(str(tmp_path / "result"))
    loaded = PeftModel.from_pretrained(roberta(), str(tmp_path / "result")).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**tokens).logits, run.model.eval()(**tokens).logits)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", {"rho": 0.1}), ("lora_2r", {"rho_schedule": "cosine"}), ("bilora", {"adaptive": True}),
        ("full", {"target_modules": ["0"]}), ("full", {"rho": 0.1}), ("sam", {"r": 4}), ("lora", {"clip": "layerwise"}),
        ("lora_sam", {"auxiliary_lr": 0.1}), ("random_aux", {"auxiliary_lr": 0.1}), ("flat_lora", {"adaptive": True}),
        ("random_aux", {"match_gradients": True}), ("sam", {"modules_to_save": ["0"]}), ("lora", {"auxiliary_r": 2}),
    ],
)  # fmt: skip
def test_settings_that_a_method_ignores_are_refused(method: str, settings: dict) -> None:
    adapters = {"r": 2, "target_modules": ["0"]} if "r" in METHODS[method].uses else {}
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name}: {method} does not use it"):
        build_method(nn.Sequential(nn.Linear(4, 4)), BiLoraConfig(method=method, **(adapters | settings)), seed=0)


@pytest.mark.parametrize("primary", ["lora", "rslora", "dora"])
def test_auxiliary_and_double_rank_keep_the_scaling(primary: str) -> None:
    expected = 4.0 if primary == "rslora" else 2.0
    for method in ("lora", "lora_2r", "bilora"):
        config = BiLoraConfig(method=method, r=4, alpha=8, primary=primary, target_modules=["0"])
        model = attach(nn.Sequential(nn.Linear(9, 9)), config)
        for adapter in model.peft_config:
            assert adapter_factors(model, adapter)["0"].scaling == pytest.approx(expected)
    wide = attach(
        nn.Sequential(nn.Linear(9, 9)), BiLoraConfig(r=4, alpha=8, auxiliary_r=2, primary=primary, target_modules=["0"])
    )
    assert adapter_factors(wide, AUXILIARY)["0"].A.shape[0] == 2
    assert adapter_factors(wide, AUXILIARY)["0"].scaling == pytest.approx(expected)


def test_patterns_dropout_and_a_ready_configuration() -> None:
    """The auxiliary follows the primary layer by layer: ranks, scalings, and the very layers."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules=["0", "1.1"], rank_pattern={"^0": 2}, alpha_pattern={"1.1": 12},
        lora_dropout=0.25,
    )  # fmt: skip
    model = attach(net, BiLoraConfig.from_lora(lora, rho=0.1))
    primary, auxiliary = (adapter_factors(model, name) for name in (PRIMARY, AUXILIARY))
    assert {name: (pair.A.shape[0], pair.scaling) for name, pair in primary.items()} == {
        "0": (2, 4.0), "1.0": (4, 2.0), "1.1": (4, 3.0),
    }  # fmt: skip
    assert {n: (p.A.shape, p.scaling) for n, p in primary.items()} == {
        n: (p.A.shape, p.scaling) for n, p in auxiliary.items()
    }
    for layer in adapted_layers(model).values():
        assert layer.lora_dropout[PRIMARY].p == 0.25
        assert isinstance(layer.lora_dropout[AUXILIARY], nn.Identity)
    with pytest.raises(ValueError, match=r"lora: .* got bias"):
        BiLoraConfig.from_lora(LoraConfig(bias="all"))
    with pytest.raises(ValueError, match="rslora with dora"):
        BiLoraConfig.from_lora(LoraConfig(use_rslora=True, use_dora=True))
    with pytest.raises(ValueError, match="'nope' matches none"):
        attach(nn.Sequential(nn.Linear(8, 8)), BiLoraConfig(target_modules=["0"], rank_pattern={"nope": 2}))


@pytest.mark.parametrize(
    ("layer", "named"),
    [(nn.Embedding(5, 4), "Embedding"), (nn.Conv2d(4, 4, 1), "Conv2d"), (nn.Bilinear(4, 4, 4), "Bilinear")],
)
def test_layers_that_do_not_fit_are_refused_with_the_reason(layer: nn.Module, named: str) -> None:
    with pytest.raises(ValueError, match=f"0 is a {named}; expected unquantised nn.Linear"):
        attach(nn.Sequential(layer), BiLoraConfig(target_modules=["0"]))


def test_names_are_checked_before_anything_is_attached() -> None:
    with pytest.raises(ValueError, match=r"'\*proj' is no regular expression"):
        BiLoraConfig(target_modules="*proj")
    with pytest.raises(ValueError, match="PEFT has no default for Sequential"):
        attach(nn.Sequential(nn.Linear(4, 4)), BiLoraConfig())
    adapted = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0"]))
    for method in ("full", "lora"):
        with pytest.raises(ValueError, match=r"bilora\.minimum"):
            build_method(adapted, BiLoraConfig(method=method), seed=0)


def test_peft_still_has_the_private_interfaces_that_are_used() -> None:
    """If this fails, PEFT has changed: adapt bilora/attaching.py and bilora/fused.py."""
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
    from peft.utils.other import get_pattern_key

    config = LoraConfig(target_modules=["0"])
    config._register_custom_module({nn.Linear: Linear})
    assert check_target_module_exists(config, "0") and not check_target_module_exists(config, "1")
    everything = _maybe_include_all_linear_layers(
        LoraConfig(target_modules="all-linear"), nn.Sequential(nn.Linear(2, 2))
    )
    assert everything.target_modules == {"0"}
    assert get_pattern_key(["^0"], "0") == "^0" and get_pattern_key(["^0"], "1.0") == "1.0"
    layer = adapted_layers(attach(nn.Sequential(nn.Linear(4, 4)), BiLoraConfig(r=2, target_modules=["0"])))["0"]
    for name in (
        "active_adapters",
        "disable_adapters",
        "merged",
        "scaling",
        "lora_variant",
        "lora_bias",
        "lora_dropout",
    ):
        assert hasattr(layer, name), name
    assert callable(layer._cast_input_dtype) and layer.fan_in_fan_out is False
