"""TRL's SFTTrainer under the methods: its data and its loss, and the methods' steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from bilora import BiLoraConfig, BiLoraTrainer
from tests.analyses.own import gpt2

EXAMPLES = [
    {"prompt": "the film was", "completion": " good and great"},
    {"prompt": "a plot in town was", "completion": " bad"},
    {"prompt": "the plot", "completion": " was dull in the town"},
] * 4


class Supervised(BiLoraTrainer, SFTTrainer):
    """As docs/training.md combines them."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpt2(tmp_path_factory.mktemp("gpt2"))


def trained(kind: type[Any], place: Path, out: Path, **options: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.pad_token = tokenizer.eos_token
    arguments = SFTConfig(
        output_dir=str(out), max_steps=4, per_device_train_batch_size=3, learning_rate=1e-2, seed=3, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", logging_steps=1, disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    still = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}  # drawing adapters moves the generator
    run = kind(
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **still), arguments,
        train_dataset=Dataset.from_list(EXAMPLES), processing_class=tokenizer, **options,
    )  # fmt: skip
    run.train()
    return run


def losses(run: Any) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_full_fine_tuning_is_that_of_the_plain_trainer(place: Path, tmp_path: Path) -> None:
    ours = trained(Supervised, place, tmp_path, bilora=BiLoraConfig(method="full"))
    theirs = trained(SFTTrainer, place, tmp_path)
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-6)
    for (name, mine), other in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)


@pytest.mark.parametrize("method", ["bilora", "bilora_fresh", "lora_sam_full"])
def test_adapters_start_at_the_plain_trainers_loss_and_load_without_us(
    place: Path, tmp_path: Path, method: str
) -> None:
    config = BiLoraConfig(method=method, r=2, alpha=4.0, rho=0.05, target_modules=["c_attn"])
    ours = trained(Supervised, place, tmp_path / "run", bilora=config)
    theirs = trained(SFTTrainer, place, tmp_path / "plain")
    first = losses(ours)[0]
    if method == "bilora":  # whose auxiliary is still zero at the first step
        assert first == pytest.approx(losses(theirs)[0], rel=1e-6)
    assert losses(ours)[-1] < losses(ours)[0]
    ours.save_model(str(tmp_path / "saved"))
    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "saved").eval()
    tokens = torch.tensor([[4, 5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, ours.model.eval()(tokens).logits)
