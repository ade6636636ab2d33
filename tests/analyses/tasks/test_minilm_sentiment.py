"""The review task with its real corpus and model; skipped where the extra ``minilm`` is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from analyses.running.audit import check, prepare
from analyses.study import Cell, Study, StudyFolder, load_preset
from analyses.study.task_settings import MinilmSentimentTask
from analyses.tasks.minilm_sentiment import PACKAGES, MinilmSentiment
from analyses.training.runs import load_minimum, train_cell
from landscape import EmpiricalRisk
from landscape.losses import zero_one

pytestmark = pytest.mark.skipif(
    not all(find_spec(name) for name in PACKAGES), reason="needs the packages of the extra 'minilm'"
)


@pytest.fixture(scope="module")
def task() -> MinilmSentiment:
    return MinilmSentiment(MinilmSentimentTask(), 128)


def test_measuring_batches_hold_every_snippet_once_the_longest_first(task: MinilmSentiment) -> None:
    batches = task.batches("train")
    widths = [batch["input_ids"].shape[1] for batch in batches]
    assert sum(len(batch["labels"]) for batch in batches) == 128
    assert widths == sorted(widths, reverse=True) and widths[0] <= 48
    assert all(
        int(batch["attention_mask"].sum(dim=1).max()) == width for batch, width in zip(batches, widths, strict=True)
    )
    tokens = sum(len(example["input_ids"]) for example in task.dataset("train"))
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == tokens


def test_only_the_head_follows_its_seed(task: MinilmSentiment) -> None:
    first, again, other = (task.new_model(seed) for seed in (0, 0, 1))
    assert torch.equal(first.head.weight, again.head.weight) and not torch.equal(first.head.weight, other.head.weight)
    assert all(torch.equal(p, q) for p, q in zip(first.encoder.parameters(), other.encoder.parameters(), strict=True))
    assert sum(p.numel() for p in first.parameters()) == 22_566_146
    assert not any(module.p for module in first.modules() if isinstance(module, torch.nn.Dropout))


def test_head_and_adapter_of_a_run_come_back_together(tmp_path: Path) -> None:
    preset = load_preset("minilm-sentiment").model_dump()
    preset |= {"train_sizes": [16], "training": {"epochs": 4, "batch_size": 8}}
    preset |= {"methods": {"lora": {"learning_rate": 3e-3}}, "tuning": None}
    preset["measures"]["seeds"] = {}
    study, cell, folder = Study.model_validate(preset), Cell("lora", 0, 16), StudyFolder(tmp_path)
    check(study)
    prepare(study, folder)
    train_cell(study, cell, folder, lambda step, total: None)
    minimum = load_minimum(study, cell, folder)
    task = MinilmSentiment(MinilmSentimentTask(), 16)
    base = task.load_base(folder.base(study))
    assert len(minimum.weight_names) == 12 and all(bool(update.any()) for update in minimum.updates.values())
    assert not torch.equal(dict(minimum.model.named_parameters())["head.weight"], base.head.weight)
    before, after = (
        EmpiricalRisk(model, task.batches("train"), loss=zero_one).loss() for model in (base, minimum.model)
    )
    assert after < before
