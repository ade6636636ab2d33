"""What users do around a trainer: autocast, copies, batches of other kinds, accumulation, resuming, folders in use."""

from __future__ import annotations

import copy
import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BatchEncoding, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from bilora import (
    BiLoraConfig,
    BiLoraTrainer,
    CurvatureCallback,
    SnapshotCallback,
    attach,
    bilora_optimizer,
    load_snapshots,
    minimum,
)
from bilora.adapters import AUXILIARY, adapter_factors
from bilora.optimizers import method_optimizer
from bilora.parts import first_examples


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.b(torch.tanh(self.a(x)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def dataset(count: int = 24) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"x": torch.randn(6, generator=generator), "labels": torch.randint(0, 3, (), generator=generator)}
        for _ in range(count)
    ]


def together(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([one[key] for one in examples]) for key in ("x", "labels")}


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "output_dir": str(folder / "out"), "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "per_device_train_batch_size": 4, "max_steps": 6, "learning_rate": 0.1, "lr_scheduler_type": "constant",
        "save_strategy": "no", "logging_steps": 100, "optim": "adamw_torch",
    }  # fmt: skip
    return TrainingArguments(**given | changes)


def config(**changes: Any) -> BiLoraConfig:
    return BiLoraConfig(**{"r": 2, "rho": 0.1, "target_modules": ["a", "b"]} | changes)


def auxiliary(model: nn.Module) -> dict[str, Tensor]:
    return {name: pair.delta_weight.detach() for name, pair in adapter_factors(model, AUXILIARY).items()}


@pytest.mark.parametrize("method", ["sam", "lora_sam", "lora_sam_full", "bilora_fresh"])
def test_an_autocast_around_both_passes_does_not_undo_the_perturbation(method: str) -> None:
    """Autocast keeps copies of weights; those of the first pass are not those of the second."""
    batch = together(dataset(16))

    def loss_at_the_perturbed_point(around: bool) -> float:
        torch.manual_seed(0)
        own = BiLoraConfig(method=method, rho=1.0) if method == "sam" else config(method=method, rho=1.0)
        model = attach(Net(), own)
        for name, parameter in model.named_parameters():
            if "lora_B.primary" in name:
                nn.init.normal_(parameter, std=0.3)
        model.bilora_method.num_steps = 10
        method_optimizer(model.bilora_method, torch.optim.SGD, lr=0.1)

        def backward(fraction: float = 1.0) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=not around):
                loss: Tensor = model(**batch).loss
            loss.backward()
            return loss.detach()

        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            return float(model.bilora_method.gradient(backward))

    assert loss_at_the_perturbed_point(True) == pytest.approx(loss_at_the_perturbed_point(False), rel=1e-2)


@pytest.mark.parametrize("parts", [2, 4])
def test_inner_ascents_take_the_micro_batchs_own_gradient(parts: int) -> None:
    batch = together(dataset(8))

    def moved(divided: int) -> Tensor:
        torch.manual_seed(0)
        model = attach(Net(), config(method="bilora_inner", rho=100.0))
        model.bilora_method.batches_per_step = divided
        method_optimizer(model.bilora_method, torch.optim.SGD, lr=0.5)

        def backward() -> Tensor:
            loss: Tensor = model(**batch).loss / divided
            loss.backward()
            return loss.detach()

        model.bilora_method.gradient(backward)
        return torch.cat([delta.flatten() for delta in auxiliary(model).values()])

    torch.testing.assert_close(moved(parts), moved(1))


@pytest.mark.parametrize("method", ["bilora", "bilora_inner"])
def test_accumulation_over_equal_micro_batches_is_one_of_them(tmp_path: Path, method: str) -> None:
    def trained(accumulated: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        data = dataset(4) * (2 * accumulated)
        order = {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": accumulated, "optim": "sgd"}
        own = arguments(tmp_path, max_steps=2, **order)
        trainer = BiLoraTrainer(Net(), own, bilora=config(method=method), train_dataset=data)
        trainer.train()
        return {name: p.detach().clone() for name, p in trainer.method.model.named_parameters()}

    one, four = trained(1), trained(4)
    for name, expected in one.items():
        torch.testing.assert_close(four[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["full", "bilora"])
def test_a_teacher_copied_during_a_pass_is_a_model_of_its_own(tmp_path: Path, method: str) -> None:
    class Distilled(BiLoraTrainer):
        teacher: nn.Module | None = None

        def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self.teacher is None:
                self.teacher = copy.deepcopy(model).requires_grad_(False)
                self.teacher.eval()
                self.modes = (self.teacher.training, model.training)
            return super().compute_loss(model, *args, **kwargs)

    own = BiLoraConfig(method="full") if method == "full" else config()
    trainer = Distilled(Net(), arguments(tmp_path, max_steps=3), bilora=own, train_dataset=dataset())
    trainer.train()
    assert trainer.modes == (False, True) and trainer.teacher is not None and not trainer.teacher.training


@pytest.mark.parametrize("method", ["bilora", "bilora_stale", "bilora_fresh"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_overflows_changes_nothing(method: str, fused: bool) -> None:
    """A scaler calls a fused optimizer's step also then, and tells it so."""
    torch.manual_seed(0)
    batch, model = together(dataset(16)), attach(Net(), config(method=method))
    model.bilora_method.num_steps = 10
    optimizer = method_optimizer(model.bilora_method, torch.optim.AdamW, lr=0.05, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        before = {name: tensor.clone() for name, tensor in auxiliary(model).items()}
        count = model.bilora_method.step
        scaler.scale(model(**batch).loss * (float("inf") if step == 3 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    for name, tensor in auxiliary(model).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert model.bilora_method.step == count
    if method == "bilora_fresh":  # and the next step's perturbation is as long as ever
        model.bilora_method.begin_step()
        model.bilora_method.gradient(lambda fraction=1.0: _backward(model, batch))
        norm = torch.stack([tensor.norm() for tensor in auxiliary(model).values()]).norm()
        assert float(norm) == pytest.approx(0.1, rel=1e-4)


def _backward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch).loss
    loss.backward()
    return loss.detach()


def test_a_copy_of_model_and_optimizer_trains_as_they_do() -> None:
    torch.manual_seed(0)
    model, batch = attach(Net(), config(rho=0.05)), together(dataset())
    optimizer = bilora_optimizer(model, torch.optim.AdamW, lr=0.1)

    def step(of: nn.Module, by: torch.optim.Optimizer) -> None:
        of(**batch).loss.backward()
        by.step()
        by.zero_grad()

    step(model, optimizer)
    twin, other = copy.deepcopy((model, optimizer))
    assert twin.bilora_method is not model.bilora_method and twin.bilora_method.optimizer is other
    for _ in range(2):
        step(model, optimizer)
        step(twin, other)
    for mine, its in zip(auxiliary(model).values(), auxiliary(twin).values(), strict=True):
        torch.testing.assert_close(its, mine, rtol=0, atol=0)
    assert twin.bilora_method.step == model.bilora_method.step == 3
    assert copy.deepcopy(model).bilora_method.optimizer is not optimizer


@pytest.mark.parametrize(("r", "alpha"), [(0, 4), (4, 0)])
def test_a_rank_or_scaling_of_zero_is_no_default(r: int, alpha: int) -> None:
    with pytest.raises(ValueError, match="greater than"):
        BiLoraConfig.from_lora(LoraConfig(r=r, lora_alpha=alpha, target_modules=["a"]), rho=0.1)


@pytest.mark.parametrize("method", ["bilora_fresh", "random_aux"])
def test_a_batch_size_that_is_given_up_leaves_nothing(tmp_path: Path, method: str) -> None:
    def first_log(fails: bool) -> dict[str, float]:
        class Short(BiLoraTrainer):
            calls = 0

            def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                self.calls += fails and len(inputs["labels"]) == 4
                if self.calls == 2:
                    self.calls += 1
                    raise RuntimeError("CUDA out of memory.")
                return super().compute_loss(model, inputs, *args, **kwargs)

        torch.manual_seed(0)
        own = arguments(
            tmp_path, max_steps=1, logging_steps=1, gradient_accumulation_steps=2, auto_find_batch_size=fails,
            per_device_train_batch_size=4 if fails else 3, train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer = Short(Net(), own, bilora=config(method=method), train_dataset=dataset(48))
        trainer.train()
        assert trainer._train_batch_size == 3
        return {key: trainer.state.log_history[0][key] for key in ("loss", "ascent_gain")}

    assert first_log(True) == pytest.approx(first_log(False), rel=1e-4)


class _OfAnyBatch(BiLoraTrainer):
    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        x, y = inputs if isinstance(inputs, tuple) else (inputs.x, inputs.labels)
        outputs = model(x, labels=y)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


@pytest.mark.parametrize("method", ["bilora", "bilora_fresh"])
@pytest.mark.parametrize("kind", [tuple, BatchEncoding])
def test_batches_reach_the_loss_as_their_collator_made_them(tmp_path: Path, kind: type, method: str) -> None:
    def collated(examples: list[dict[str, Tensor]]) -> Any:
        batch = together(examples)
        return BatchEncoding(batch) if kind is BatchEncoding else tuple(batch.values())

    own = arguments(tmp_path, max_steps=2)
    trainer = _OfAnyBatch(Net(), own, bilora=config(method=method), train_dataset=dataset(), data_collator=collated)
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_part_of_a_batch_has_as_many_of_everything() -> None:
    part = first_examples({"x": torch.zeros(4, 2), "weights": [0.1, 0.2, 0.3, 0.4], "names": tuple("abcd")}, 0.5)
    assert len(part["x"]) == 2 and part["weights"] == [0.1, 0.2] and part["names"] == ("a", "b")
    boxes = [{"class_labels": torch.arange(4)} for _ in range(4)]
    part = first_examples({"pixel_values": torch.zeros(4, 3, 2, 2), "labels": boxes}, 0.25)
    assert len(part["labels"]) == 1 and len(part["labels"][0]["class_labels"]) == 4
    part = first_examples({"x": torch.zeros(4, 2), "states": [torch.zeros(4, 5), torch.zeros(4, 5)]}, 0.5)
    assert [len(state) for state in part["states"]] == [2, 2]
    with pytest.raises(ValueError, match=r"names: expected 4 entries, one per example, .* got 3"):
        first_examples({"x": torch.zeros(4, 2), "names": ["a", "b", "c"]}, 0.5)


class _StopsAtFive(TrainerCallback):
    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        control.should_training_stop = state.global_step == 5


@pytest.mark.parametrize("first", [True, False])
def test_what_watches_a_training_sees_its_end_and_goes_on_after_it(tmp_path: Path, first: bool) -> None:
    def train(*others: TrainerCallback, resume: str | None = None, **changes: Any) -> list[int]:
        watcher = CurvatureCallback([together(dataset())], every=3, measures=["top_eigenvalue"])
        callbacks = [SnapshotCallback(tmp_path / "shots", every=3), watcher]
        callbacks = [*others, *callbacks] if first else [*callbacks, *others]
        own = arguments(tmp_path, max_steps=9, save_strategy="steps", save_steps=4, **changes)
        trainer = BiLoraTrainer(Net(), own, bilora=config(), train_dataset=dataset(), callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        with (tmp_path / "out" / "curvature.csv").open() as file:
            return [int(row["step"]) for row in csv.DictReader(file)]

    assert train(_StopsAtFive()) == [0, 3, 5]
    assert list(load_snapshots(tmp_path / "shots")) == [0, 3, 5]
    assert train(resume=str(tmp_path / "out" / "checkpoint-4")) == [0, 3, 6, 9]
    assert list(load_snapshots(tmp_path / "shots")) == [0, 3, 4, 6, 9]  # the one that it is resumed from, too
    BiLoraTrainer(
        Net(), arguments(tmp_path, max_steps=2), bilora=config(), train_dataset=dataset(),
        callbacks=[SnapshotCallback(tmp_path / "shots", every=2)],
    ).train()  # fmt: skip
    assert list(load_snapshots(tmp_path / "shots")) == [0, 2]


@pytest.mark.parametrize("own", [config(), BiLoraConfig(method="full")])
def test_a_best_checkpoint_that_is_gone_loses_no_training(tmp_path: Path, own: BiLoraConfig) -> None:
    class Removes(TrainerCallback):
        def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            for checkpoint in Path(args.output_dir).glob("checkpoint-*") if state.global_step == 5 else []:
                shutil.rmtree(checkpoint)

    each = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2}
    arguments_of_it = arguments(tmp_path, max_steps=5, load_best_model_at_end=True, **each)
    trainer = BiLoraTrainer(
        Net(), arguments_of_it, bilora=own, train_dataset=dataset(), eval_dataset=dataset(), callbacks=[Removes()]
    )
    with pytest.warns(UserWarning, match="checkpoint-. is gone; the model keeps its last weights"):
        trainer.train()
    assert trainer.state.global_step == 5


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_updates_of_adapters_that_peft_took_out_of_the_weights(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    base = copy.deepcopy(net)
    model = get_peft_model(net, LoraConfig(r=2, lora_alpha=4, target_modules=["0", "2"], init_lora_weights=kind))
    model.save_pretrained(tmp_path)
    assert minimum(model).updates == {}
    for found in (minimum(model, base=base), minimum(tmp_path, base=base)):
        assert set(found.updates) == {"0.weight", "2.weight"}
        for name, update in found.updates.items():
            torch.testing.assert_close(update, torch.zeros_like(base.get_parameter(name)), rtol=0, atol=1e-5)
    again = tmp_path / "niter"
    config_of_it = LoraConfig(r=2, target_modules=["0"], init_lora_weights="pissa_niter_2")
    get_peft_model(copy.deepcopy(base), config_of_it).save_pretrained(again)
    with pytest.raises(ValueError, match="pissa_niter_2, whose base PEFT draws anew at random"):
        minimum(again, base=base)


@pytest.mark.parametrize("method", ["bilora", "bilora_fresh", "bilora_stale"])
def test_pefts_own_merge_leaves_out_an_auxiliary_that_is_alone(tmp_path: Path, method: str) -> None:
    own = BiLoraConfig(method=method, primary="full", r=2, rho=0.5, target_modules=["a", "b"])
    trainer = BiLoraTrainer(Net(), arguments(tmp_path, max_steps=4), bilora=own, train_dataset=dataset())
    batch = together(dataset())
    for _ in range(2):  # and a second training takes it up again
        trainer.train()
        with torch.no_grad():
            deployed, merged = trainer.model(**batch).loss, copy.deepcopy(trainer.model).merge_and_unload()
            torch.testing.assert_close(merged(**batch).loss, deployed)
            torch.testing.assert_close(minimum(trainer).model(**batch).loss, deployed)
        assert float(trainer.method.metrics()["auxiliary_norm"]) > 0


def test_other_adapters_and_ranks_are_named() -> None:
    seeing = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="0 holds an adapter of a Conv2d, of kind lora; expected LoRA in linear"):
        minimum(get_peft_model(copy.deepcopy(seeing), LoraConfig(target_modules=["0", "2"], r=2)))
    found = minimum(get_peft_model(seeing, LoHaConfig(target_modules=["0", "2"], r=2)))
    assert found.weight_names == ("0.weight", "0.bias", "2.weight", "2.bias")
    plain = nn.Sequential(nn.Linear(6, 8, bias=False))
    with pytest.raises(ValueError, match=r"0 has an adapter with a bias \(lora_bias\) and no bias to merge it into"):
        minimum(get_peft_model(plain, LoraConfig(target_modules=["0"], r=2, lora_bias=True)))
    with pytest.raises(ValueError, match=r"rank 4 \(2 times the 2 that was given\) exceeds .* use at most 1"):
        attach(Net(), BiLoraConfig(method="lora_2r", r=2, target_modules=["a", "b"]))


def test_trainer_itself_takes_what_is_tested_here(tmp_path: Path) -> None:
    """The reference: a batch of another kind is nothing that transformers' own trainer refuses."""

    class Plain(Trainer):
        compute_loss = _OfAnyBatch.compute_loss

    Plain(
        Net(), arguments(tmp_path, max_steps=1), train_dataset=dataset(),
        data_collator=lambda examples: tuple(together(examples).values()),
    ).train()  # fmt: skip
