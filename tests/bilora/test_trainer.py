"""The trainer on a tiny vision transformer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor

from bilora import BiLoraConfig, BiLoraTrainer
from bilora.adapters import adapter_factors
from bilora.clipping import adapter_norm
from tests.bilora.conftest import config_of


def tiny_vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def dataset() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(10, 1, 8, 8, generator=generator)
    return [{"pixel_values": image, "labels": torch.tensor(i % 3)} for i, image in enumerate(images)]


def trainer(tmp_path: Path, method: str, data: list[dict[str, Tensor]] | None = None, **settings) -> BiLoraTrainer:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4, learning_rate=0.01, seed=5,
        save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        remove_unused_columns=False, max_grad_norm=settings.pop("max_grad_norm", 0.0),
    )  # fmt: skip
    config = config_of(method, r=2, target_modules=["q_proj", "fc1"], **settings)
    return BiLoraTrainer(tiny_vit(), arguments, bilora=config, train_dataset=data or dataset())


@pytest.mark.parametrize("method", ["full", "lora_sam", "lora_sam_full", "bilora"])
def test_training_repeats_to_the_bit(tmp_path: Path, method: str) -> None:
    results = []
    for _ in range(2):
        run = trainer(tmp_path, method, rho=0.05)
        run.train()
        results.append([p.detach().clone() for p in run.model.parameters()])
        assert len(run.step_losses) == 6
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_all_methods_see_the_same_batches(tmp_path: Path) -> None:
    orders = []
    for method in ("full", "lora", "random_aux", "bilora"):
        run, seen = trainer(tmp_path, method), []
        run.model.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append(kwargs["pixel_values"].sum().item()),
            with_kwargs=True,
        )
        run.train()
        orders.append(seen)
    assert all(order == orders[0] for order in orders)


def test_auxiliary_stays_in_the_ball_and_the_result_is_a_plain_adapter(tmp_path: Path) -> None:
    run = trainer(tmp_path, "bilora", rho=0.03)
    run.train()
    auxiliary = adapter_factors(run.model, "auxiliary")
    assert 0 < float(adapter_norm(auxiliary.values())) <= 0.03 * (1 + 1e-6)
    tokens = ViTImageProcessor(size={"height": 8, "width": 8})
    run.processing_class = tokens
    run.save_model(str(tmp_path / "result"))
    assert BiLoraConfig.from_pretrained(tmp_path / "result") == run.method.config
    assert ViTImageProcessor.from_pretrained(tmp_path / "result").size == tokens.size
    assert (tmp_path / "result" / "training_args.bin").exists()
    loaded = PeftModel.from_pretrained(tiny_vit(), str(tmp_path / "result"))
    images = torch.stack([example["pixel_values"] for example in dataset()])
    run.model.base_model.set_adapter("primary")
    with torch.no_grad():
        expected = run.model.eval()(pixel_values=images).logits
        torch.testing.assert_close(loaded.eval()(pixel_values=images).logits, expected)
        merged = loaded.merge_and_unload()(pixel_values=images).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


def test_gradient_clipping_leaves_the_ascent_alone(tmp_path: Path) -> None:
    run = trainer(tmp_path, "bilora", max_grad_norm=1e-12, rho=10.0)
    run.args.max_steps, norms = 1, []
    run.create_optimizer()
    run.optimizer.register_step_pre_hook(
        lambda optimizer, *_: norms.extend(
            torch.stack([p.grad.norm() for p in group["params"]]).norm().item() for group in optimizer.param_groups
        )
    )
    run.train()
    assert norms[0] <= 1e-12 * 1.01
    assert norms[1] > 1e-6


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path: Path) -> None:
    data = dataset()
    for example in data:
        example["pixel_values"] = torch.full((1, 8, 8), math.nan)
    with pytest.raises(FloatingPointError, match="bilora is nan at step 1"):
        trainer(tmp_path, "bilora", data).train()
