"""Batch statistics under adapters: checkpoints and minima hold them, and who saves an adapter is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from bilora import minimum
from tests.bilora.small_bert import settings, trainer

INPUTS = 3 * torch.randn(16, 6, generator=torch.Generator().manual_seed(0)) + 1
DATA = [{"x": x, "labels": i % 3} for i, x in enumerate(INPUTS)]


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        found = self.last(self.norm(self.first(x)).relu())
        out = {"logits": found}
        return out if labels is None else out | {"loss": nn.functional.cross_entropy(found, labels)}


def run_of(folder: Path, method: str = "lora_sam_full", **changes: Any) -> Any:
    config = settings(method, target_modules=["first", "last"], rho=0.05, **changes)
    return trainer(
        folder, config, Normalised(), data=DATA, max_steps=6, save_strategy="steps", save_steps=1, eval_steps=1,
        eval_strategy="steps", label_names=["labels"], load_best_model_at_end=True, learning_rate=0.3,
        per_device_train_batch_size=8,
    )  # fmt: skip


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(x=INPUTS)["logits"]
    return found


def losses(run: Any) -> list[float]:
    return [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]


@pytest.mark.parametrize("method", ["lora", "bilora", "lora_sam_full"])
def test_the_best_model_resuming_and_minima_have_their_own(tmp_path: Path, method: str) -> None:
    run = run_of(tmp_path, method)
    run.train()
    whole = losses(run)
    assert run.evaluate()["eval_loss"] == pytest.approx(run.state.best_metric, rel=1e-6)
    best = minimum(run.state.best_model_checkpoint, base=Normalised())
    torch.testing.assert_close(logits(best.model), logits(run.model), rtol=1e-4, atol=1e-4)
    resumed = run_of(tmp_path, method)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert losses(resumed)[3:6] == whole[3:6]


def test_who_saves_an_adapter_is_told_and_the_minimum_has_them(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    run.train()
    with pytest.warns(UserWarning, match=r"training moved buffers .* norm.running_mean say"):
        run.save_model(str(tmp_path / "saved"))
    trained = logits(run.model)
    torch.testing.assert_close(logits(minimum(tmp_path / "saved", base=Normalised()).model), trained)
    assert (logits(PeftModel.from_pretrained(Normalised(), tmp_path / "saved")) - trained).abs().max() > 0.1


@pytest.mark.filterwarnings("error")
def test_a_norm_saved_as_a_whole_brings_them_itself(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "lora", modules_to_save=["norm"])
    run.train()
    run.save_model(str(tmp_path / "saved"))
    torch.testing.assert_close(logits(PeftModel.from_pretrained(Normalised(), tmp_path / "saved")), logits(run.model))


def test_a_part_of_one_example_is_refused_by_name(tmp_path: Path) -> None:
    config = settings("bilora_fresh", target_modules=["first", "last"], ascent_fraction=0.1)
    run = trainer(tmp_path, config, Normalised(), data=DATA, label_names=["labels"])
    with pytest.raises(ValueError, match=r"ascent_fraction: batch normalisation needs more examples"):
        run.train()
