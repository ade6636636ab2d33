"""What `transformers.Trainer` offers keeps its meaning with every method."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from bilora import METHODS, BiLoraConfig, BiLoraTrainer, SnapshotCallback, load_snapshots
from bilora.adapters import PRIMARY, adapter_factors, only_adapters
from tests.bilora.conftest import config_of
from tests.bilora.test_trainer import dataset, tiny_vit

TWO_PASS = ["sam", "lora_sam", "lora_sam_full", "lora_sam_rank"]


def trainer(tmp_path: Path, method: str = "bilora", /, **options: Any) -> BiLoraTrainer:
    """A trainer for 8 steps; options are of the configuration where it has them, else training arguments."""
    config = {"r": 2, "rho": 0.05, "target_modules": ["q_proj", "fc1"]}
    config |= {key: options.pop(key) for key in list(options) if key in BiLoraConfig.model_fields}
    extra = {key: options.pop(key) for key in ("eval_dataset", "callbacks") if key in options}
    settings = {
        "output_dir": str(tmp_path), "max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 0.01, "seed": 5,
        "save_strategy": "no", "logging_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True,
        "remove_unused_columns": False, "max_grad_norm": 0.0,
    }  # fmt: skip
    arguments = TrainingArguments(**(settings | options))
    bilora = config_of(method, **config)
    return BiLoraTrainer(tiny_vit(), arguments, bilora=bilora, train_dataset=dataset(), **extra)


def weights(run: BiLoraTrainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = state.global_step == self.step
        return control


@pytest.mark.parametrize("method", sorted(METHODS))
def test_resuming_from_a_checkpoint_continues_to_the_bit(tmp_path: Path, method: str) -> None:
    options = {"save_strategy": "steps", "save_steps": 3, "rho_schedule": "cosine", "modules_to_save": ["classifier"]}
    whole = trainer(tmp_path / "whole", method, **options)
    whole.train()
    trainer(tmp_path / "part", method, callbacks=[StopAt(3)], **options).train()
    resumed = trainer(tmp_path / "part", method, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    for (name, expected), actual in zip(weights(whole).items(), weights(resumed).values(), strict=True):
        assert torch.equal(expected, actual), name


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, save_strategy="steps", save_steps=4).train()
    other = trainer(tmp_path, rho=0.1)
    with pytest.raises(ValueError, match=r"rho 0\.05 there, 0\.1 here"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize("method", ["lora", "bilora", "dual_lora", "random_aux", "bilora_stale", "lora_sam_lag"])
def test_accumulated_micro_batches_are_one_batch(tmp_path: Path, method: str) -> None:
    """A batch of 4 and two accumulated batches of 2 give one update, for the methods of one pass."""
    whole = trainer(tmp_path, method, max_steps=2, optim="sgd")
    parts = trainer(
        tmp_path, method, max_steps=2, optim="sgd", per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    whole.train()
    parts.train()
    for (name, expected), actual in zip(weights(whole).items(), weights(parts).values(), strict=True):
        # A set auxiliary's factors hold arbitrary directions beside a gradient of less than full rank.
        if not (method == "bilora_stale" and "auxiliary" in name):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", TWO_PASS)
def test_accumulation_perturbs_every_micro_batch_by_its_own_gradient(tmp_path: Path, method: str) -> None:
    """m-sharpness: the step is along the mean of the micro-batches' perturbed gradients."""
    accumulated = trainer(tmp_path, method, optim="sgd", max_steps=1, gradient_accumulation_steps=2)
    examples = dataset()
    batches = [
        {key: torch.stack([e[key] for e in half]) for key in examples[0]} for half in (examples[:4], examples[4:8])
    ]
    descending = accumulated.method.primary_parameters()
    gradients = []
    for batch in batches:

        def backward(batch: dict[str, Tensor] = batch) -> Tensor:
            loss = accumulated.model(**batch).loss
            loss.backward()
            return loss.detach()

        accumulated.method.gradient(backward)
        gradients.append([p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in descending])
        accumulated.model.zero_grad()
    before = [p.detach().clone() for p in descending]
    accumulated.create_optimizer()
    accumulated.accelerator.gradient_accumulation_steps = 2
    for batch in batches:
        accumulated.method.gradient(lambda batch=batch: _half_backward(accumulated, batch))
    accumulated.optimizer.step()
    for p, old, first, second in zip(descending, before, *gradients, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.01 * (first + second) / 2, rtol=1e-4, atol=1e-7)


def test_a_fresh_auxiliary_ascends_on_the_first_micro_batch_of_a_step(tmp_path: Path) -> None:
    """All micro-batches are then taken at the one point, and the row space moves by the whole step's gradient."""
    run = trainer(
        tmp_path, "bilora_fresh", max_steps=2, optim="sgd", per_device_train_batch_size=4,
        gradient_accumulation_steps=2, ascent_fraction=0.5,
    )  # fmt: skip
    passes: list[tuple[str, int, dict[str, Tensor]]] = []
    inner = run.model.forward

    def watched(**inputs: Any) -> Any:
        deltas = {name: pair.delta_weight.detach().clone() for name, pair in run.method.auxiliary.items()}
        passes.append((run.method.under_way, len(inputs["labels"]), deltas))
        return inner(**inputs)

    run.model.forward = watched
    run.train()
    # Of ten examples the second step gets the last two.
    expected = [("ascent", 2), ("step", 4), ("step", 4), ("ascent", 1), ("step", 2)]
    assert [(kind, size) for kind, size, _ in passes] == expected
    for name in passes[0][2]:
        assert not passes[0][2][name].any()
        assert torch.equal(passes[1][2][name], passes[2][2][name]) and passes[1][2][name].any()
    rows = {name: pair.A.detach() for name, pair in run.method.auxiliary.items()}
    for row in rows.values():
        torch.testing.assert_close(row @ row.T, torch.eye(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["bilora_stale", "bilora_fresh"])
def test_logs_say_how_a_set_auxiliary_lies(tmp_path: Path, method: str) -> None:
    run = trainer(tmp_path, method, logging_strategy="steps", logging_steps=4, rho=0.02, ascent_fraction=1.0)
    run.train()
    entries = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert entry["auxiliary_norm"] == pytest.approx(0.02, rel=1e-5) and "clip_rate" not in entry
        assert 0 < entry["cos_auxiliary_gradient"] <= 1 and entry["ascent_gain"] > 0


def _half_backward(run: BiLoraTrainer, batch: dict[str, Tensor]) -> Tensor:
    loss = run.model(**batch).loss / 2
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_bf16_autocast_trains(tmp_path: Path, method: str) -> None:
    run = trainer(tmp_path, method, bf16=True, max_steps=10, learning_rate=0.02)
    run.train()
    assert all(math.isfinite(loss) for loss in run.step_losses)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, method: str) -> None:
    runs = [trainer(tmp_path, method, max_steps=3, gradient_checkpointing=flag) for flag in (False, True)]
    for run in runs:
        run.train()
    for expected, actual in zip(weights(runs[0]).values(), weights(runs[1]).values(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_evaluation_and_prediction_leave_the_auxiliary_out(tmp_path: Path) -> None:
    run = trainer(tmp_path, rho=5.0, learning_rate=0.1, eval_dataset=dataset())
    run.train()
    run.method.engage()
    images = torch.stack([example["pixel_values"] for example in dataset()])
    run.model.eval()
    with torch.no_grad():
        both = run.model(pixel_values=images).logits
        with only_adapters(run.model, [PRIMARY]):
            primary = run.model(pixel_values=images).logits
    assert not torch.allclose(both, primary, atol=1e-3)
    torch.testing.assert_close(torch.tensor(run.predict(dataset()).predictions), primary)
    labels = torch.stack([example["labels"] for example in dataset()])
    expected = torch.nn.functional.cross_entropy(primary, labels)
    assert run.evaluate()["eval_loss"] == pytest.approx(float(expected), abs=1e-5)
    assert [p.requires_grad for p in run.method.auxiliary_parameters()] == [True] * 4


def test_best_model_is_loaded_and_saved_without_the_auxiliary(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, learning_rate=0.3, eval_dataset=dataset(), eval_strategy="steps", eval_steps=2, save_strategy="steps",
        save_steps=2, load_best_model_at_end=True, modules_to_save=["classifier"],
    )  # fmt: skip
    run.train()
    best = min(entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry)
    assert run.evaluate()["eval_loss"] == pytest.approx(best, abs=1e-6)
    run.save_model(str(tmp_path / "result"))
    names = {file.name for file in (tmp_path / "result").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    images = torch.stack([example["pixel_values"] for example in dataset()])
    loaded = PeftModel.from_pretrained(tiny_vit(), str(tmp_path / "result")).eval()
    logits = torch.tensor(run.predict(dataset()).predictions)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values=images).logits, logits)
        torch.testing.assert_close(loaded.merge_and_unload()(pixel_values=images).logits, logits, rtol=1e-4, atol=1e-5)


def test_logs_say_how_the_ascent_goes(tmp_path: Path) -> None:
    run = trainer(tmp_path, logging_strategy="steps", logging_steps=4, rho=0.01)
    run.train()
    entries = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert 0 < entry["auxiliary_norm"] <= 0.01 * (1 + 1e-6)
        assert 0 < entry["clip_rate"] <= 1
        assert -1 <= entry["cos_auxiliary_gradient"] <= 1
        assert entry["ascent_gain"] * entry["cos_auxiliary_gradient"] >= 0
    assert all(not layer.requires_grad for name, layer in run.model.named_parameters() if "base_layer" in name)


class Logger(TrainerCallback):
    """Asks for the configuration when training begins, as the loggers that come with the trainer do."""

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        self.configuration = json.loads(args.to_json_string())


def test_loggers_record_the_methods_settings_and_checkpoints_the_given_arguments(tmp_path: Path) -> None:
    logger = Logger()
    run = trainer(tmp_path, rho=0.07, callbacks=[logger], save_strategy="steps", save_steps=4, max_steps=4)
    callbacks = [*run.callback_handler.callbacks]
    run.train()
    assert BiLoraConfig.model_validate(logger.configuration["bilora"]).rho == 0.07
    assert logger.configuration["learning_rate"] == 0.01
    assert "bilora" not in run.args.to_dict()
    assert run.callback_handler.callbacks == callbacks
    with zipfile.ZipFile(tmp_path / "checkpoint-4" / "training_args.bin") as kept:  # the trainer pickles it
        (pickled,) = (kept.read(name) for name in kept.namelist() if name.endswith("data.pkl"))
    assert b"learning_rate" in pickled and b"bilora" not in pickled


def test_logged_cosine_is_that_of_the_dense_gradient(tmp_path: Path) -> None:
    run = trainer(tmp_path, logging_strategy="steps", logging_steps=1, max_steps=1, rho=0.5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for pair in run.method.auxiliary.values():
            pair.B.copy_(0.1 * torch.randn(pair.B.shape, generator=generator))
    plain, batch = run.model, next(iter(run.get_train_dataloader()))
    deltas = {name: pair.delta_weight.detach().clone() for name, pair in adapter_factors(plain, "auxiliary").items()}
    layers = {name: plain.get_submodule(f"base_model.model.{name}").get_base_layer().weight for name in deltas}
    for weight in layers.values():
        weight.requires_grad_(True)
    gradients = torch.autograd.grad(plain(**batch).loss, list(layers.values()))
    for weight in layers.values():
        weight.requires_grad_(False)
    g, e = (torch.cat([t.flatten() for t in tensors]) for tensors in (gradients, list(deltas.values())))
    run.train()
    entry = next(entry for entry in run.state.log_history if "loss" in entry)
    assert entry["cos_auxiliary_gradient"] == pytest.approx(float(torch.dot(g, e) / g.norm() / e.norm()), abs=1e-4)
    assert entry["ascent_gain"] == pytest.approx(float(torch.dot(g, e)), rel=1e-3)


def test_the_model_trains_and_evaluates_in_its_mode(tmp_path: Path) -> None:
    run = trainer(tmp_path, eval_dataset=dataset(), eval_strategy="steps", eval_steps=3)
    modes: list[tuple[bool, bool]] = []
    inner = run.model.get_submodule("base_model.model.vit.layers.0.attention.q_proj")
    run.model.register_forward_pre_hook(
        lambda model, *_: modes.append((model.training, inner.training)), with_kwargs=True
    )
    run.train()
    training = [mode for mode in modes if mode[0]]
    assert len(training) == 8 and all(mode == (True, True) for mode in training)
    assert (False, False) in modes and all(outer == within for outer, within in modes)
    assert "train" not in vars(run.model)


def test_snapshots_hold_both_adapters_at_the_asked_steps(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[SnapshotCallback(tmp_path / "snapshots", every=3)])
    run.train()
    snapshots = load_snapshots(tmp_path / "snapshots")
    assert list(snapshots) == [0, 3, 6, 8]
    for layer, pair in run.method.auxiliary.items():
        assert torch.equal(snapshots[8][f"auxiliary/{layer}/B"], pair.B)
        assert torch.count_nonzero(snapshots[0][f"auxiliary/{layer}/B"]) == 0
    with pytest.raises(ValueError, match="every"):
        SnapshotCallback(tmp_path, every=0)
