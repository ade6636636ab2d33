"""Tasks made of a user's own files and model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from PIL import Image
from pydantic import ValidationError
from transformers import ViTConfig, ViTForImageClassification

from analyses.study.base import StudyError
from analyses.study.data_settings import DataTask
from analyses.tasks.own_data import OwnData
from landscape import EmpiricalRisk
from tests.analyses.own import VOCABULARY, bert, gpt2, reviews, t5


def task(tmp_path: Path, name: str, data: Any, model: Path | None = None, size: int = 60, **settings: Any) -> OwnData:
    model = model or bert(tmp_path / "model")
    return OwnData(DataTask(name=name, model=str(model), data=data, **settings), size)


@pytest.fixture
def csv(tmp_path: Path) -> str:
    path = tmp_path / "reviews.csv"
    reviews().to_csv(path, index=False)
    return str(path)


def texts(own: OwnData, split: str) -> list[tuple[int, ...]]:
    return [tuple(example["input_ids"].tolist()) for example in own.dataset(split)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet", "folder"])
def test_every_format_gives_the_same_examples(tmp_path: Path, suffix: str) -> None:
    frame, path = reviews(), tmp_path / f"data.{suffix}"
    writers = {
        "csv": lambda: frame.to_csv(path, index=False),
        "tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "parquet": lambda: frame.to_parquet(path),
        "folder": lambda: Dataset.from_pandas(frame).save_to_disk(path),
    }
    writers[suffix]()
    own = task(tmp_path, "text_classification", str(path))
    first = own.dataset("train")[0]
    row = frame.iloc[int(own._parts["train"][1][0])]
    assert first["input_ids"].tolist() == [2, *(VOCABULARY.index(word) for word in row["text"].split()), 3]
    assert int(first["labels"]) == ["fresh", "rotten"].index(row["label"])


def test_splits_are_disjoint_stratified_and_of_the_sizes_asked_for(tmp_path: Path, csv: str) -> None:
    own = task(tmp_path, "text_classification", csv, test_size=40, validation_size=20)
    rows = {split: set(rows.tolist()) for split, (_, rows) in own._parts.items()}
    assert {split: len(found) for split, found in rows.items()} == {"train": 60, "validation": 20, "test": 40}
    assert len(set.union(*rows.values())) == 120
    for split in rows:
        labels = torch.stack([example["labels"] for example in own.dataset(split)])
        assert labels.float().mean() == 0.5
    larger = task(tmp_path, "text_classification", csv, size=100, test_size=40, validation_size=20)
    assert texts(larger, "test") == texts(own, "test")
    redrawn = OwnData(own.settings, 60, draw=7)
    assert texts(redrawn, "test") == texts(own, "test") and texts(redrawn, "train") != texts(own, "train")


def test_groups_stay_in_one_split(tmp_path: Path, csv: str) -> None:
    own = task(tmp_path, "text_classification", csv, group="film", test_size=40, validation_size=20)
    films = {split: set(reviews()["film"].iloc[rows]) for split, (_, rows) in own._parts.items()}
    assert not films["train"] & films["test"] and not films["train"] & films["validation"]
    assert not films["test"] & films["validation"]


def test_files_by_split_are_used_whole(tmp_path: Path, csv: str) -> None:
    other = tmp_path / "test.jsonl"
    reviews(30, seed=1).to_json(other, orient="records", lines=True)
    own = task(tmp_path, "text_classification", {"train": csv, "test": str(other)})
    assert len(own.dataset("test")) == 30 and len(own.dataset("validation")) == 20


@pytest.mark.parametrize("framed", [True, False])
def test_the_risk_of_texts_is_the_models_own_loss_whatever_the_padding(tmp_path: Path, csv: str, framed: bool) -> None:
    model = bert(tmp_path / "m") if framed else gpt2(tmp_path / "m")
    own = task(tmp_path, "text_classification", csv, model)
    network = own.new_model(0)
    losses = []
    with torch.no_grad():
        for example in own.dataset("test"):
            logits = network(input_ids=example["input_ids"][None]).logits
            losses.append(F.cross_entropy(logits, example["labels"][None]))
    risk = EmpiricalRisk(network, own.batches("test"), own.loss)
    assert risk.loss() == pytest.approx(float(torch.stack(losses).double().mean()), rel=1e-5)


def test_models_have_no_dropout_and_heads_follow_the_seed(tmp_path: Path, csv: str) -> None:
    own = task(tmp_path, "text_classification", csv, bert(tmp_path / "m", num_labels=5))
    models = [own.new_model(seed) for seed in (0, 0, 1)]
    assert all(layer.p == 0 for layer in models[0].modules() if isinstance(layer, torch.nn.Dropout))
    heads = [model.classifier.weight for model in models]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2]) and len(heads[0]) == 2
    body = [model.bert.encoder.layer[0].output.dense.weight for model in models]
    assert torch.equal(body[0], body[2])


def test_a_model_that_knows_the_labels_keeps_its_head_and_their_order(tmp_path: Path, csv: str) -> None:
    model = bert(tmp_path / "m", id2label={0: "rotten", 1: "fresh"}, label2id={"rotten": 0, "fresh": 1})
    own = task(tmp_path, "text_classification", csv, model)
    assert own.classes == {"rotten": 0, "fresh": 1}
    assert torch.equal(own.new_model(0).classifier.weight, own.new_model(1).classifier.weight)


def test_a_head_keeps_the_labels_that_the_data_lack(tmp_path: Path, csv: str) -> None:
    names = {"rotten": 0, "mixed": 1, "fresh": 2}
    model = bert(tmp_path / "m", label2id=names, id2label={i: name for name, i in names.items()})
    own = task(tmp_path, "text_classification", csv, model)
    assert own.classes == {"rotten": 0, "fresh": 2}
    heads = [own.new_model(seed).classifier.weight for seed in (0, 1)]
    assert len(heads[0]) == 3 and torch.equal(*heads)


def test_numbered_labels_need_not_begin_at_zero(tmp_path: Path, csv: str) -> None:
    assert task(tmp_path, "text_classification", csv, label="number").classes == {3: 0, 4: 1}


def test_pairs_of_texts_are_two_segments(tmp_path: Path, csv: str) -> None:
    own = task(tmp_path, "text_classification", csv, input=["text", "film"])
    assert own.dataset("train")[0]["token_type_ids"].tolist()[-1] == 1


def test_a_regression_is_a_squared_error_without_an_accuracy(tmp_path: Path, csv: str) -> None:
    own = task(tmp_path, "regression", csv, label="score")
    model = own.new_model(0)
    assert model.config.num_labels == 1 and own.error is None
    values = torch.cat(
        [model(**{k: v for k, v in b.items() if k != "labels"}).logits[:, 0] for b in own.batches("test")]
    )
    targets = torch.cat([b["labels"] for b in own.batches("test")])
    expected = float((values - targets).square().mean().detach())
    assert EmpiricalRisk(model, own.batches("test"), own.loss).loss() == pytest.approx(expected, rel=1e-5)


def test_a_causal_model_predicts_the_next_token(tmp_path: Path, csv: str) -> None:
    own = task(tmp_path, "causal_lm", csv, gpt2(tmp_path / "m"))
    model, total, count = own.new_model(0), 0.0, 0
    for example in own.dataset("test"):
        ids = example["input_ids"]
        logits = model(input_ids=ids[None]).logits[0, :-1]
        total += float(F.cross_entropy(logits, ids[1:], reduction="sum"))
        count += len(ids) - 1
    risk = EmpiricalRisk(model, own.batches("test"), own.loss)
    assert risk.loss() == pytest.approx(total / count, rel=1e-5)


def test_tags_belong_to_the_first_token_of_a_word(tmp_path: Path) -> None:
    rows = [{"tokens": text.split(), "tags": ["X" if w in ("film", "plot") else "O" for w in text.split()]}
            for text in reviews()["text"]]  # fmt: skip
    path = tmp_path / "tags.jsonl"
    pd.DataFrame(rows).to_json(path, orient="records", lines=True)
    own = task(tmp_path, "token_classification", str(path))
    for example in own.dataset("train"):
        words = [VOCABULARY[i] in ("film", "plot") for i in example["input_ids"][1:-1]]
        assert example["labels"].tolist() == [-100, *map(int, words), -100]
    assert EmpiricalRisk(own.new_model(0), own.batches("train"), own.loss).loss() > 0
    assert 0 <= EmpiricalRisk(own.new_model(0), own.batches("train"), own.error).loss() <= 1


def test_sequences_to_sequences_have_the_targets_as_labels(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    reviews().rename(columns={"film": "x"}).assign(target=lambda f: f["text"].str.upper().str.lower()).to_json(
        path, orient="records", lines=True
    )
    own = task(tmp_path, "seq2seq", str(path), t5(tmp_path / "m"))
    example = own.dataset("train")[0]
    assert torch.equal(example["labels"], example["input_ids"])
    batch = own.collate(own.dataset("train")[:5])
    assert torch.equal(
        batch["decoder_input_ids"], own.new_model(0).prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    )
    assert EmpiricalRisk(own.new_model(0), own.batches("train"), own.loss).loss() > 0


def vit(folder: Path, channels: int) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=channels, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_an_image_folder_is_resized_to_the_models_size(tmp_path: Path) -> None:
    for label, shade in {"dark": 51, "light": 204}.items():
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (20, 16), (shade, shade, shade)).save(tmp_path / "images" / label / f"{number}.png")
    own = task(tmp_path, "image_classification", str(tmp_path / "images"), vit(tmp_path / "m", 3), size=8)
    example = own.dataset("train")[0]
    assert example["pixel_values"].shape == (3, 8, 8)
    torch.testing.assert_close(example["pixel_values"], torch.full((3, 8, 8), 0.8 if example["labels"] else 0.2))
    assert own.classes == {"dark": 0, "light": 1}
    assert EmpiricalRisk(own.new_model(0), own.batches("train"), own.loss).loss() > 0


def test_arrays_are_images(tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    np.savez(tmp_path / "a.npz", image=np.full((40, 8, 8), 51, np.uint8), label=labels)
    own = task(tmp_path, "image_classification", str(tmp_path / "a.npz"), vit(tmp_path / "m", 1), size=12)
    torch.testing.assert_close(own.dataset("train")[0]["pixel_values"], torch.full((1, 8, 8), 0.2))


def test_changed_data_are_noticed(tmp_path: Path, csv: str) -> None:
    own = task(tmp_path, "text_classification", csv)
    (tmp_path / "base").mkdir()
    own.create_base(tmp_path / "base", lambda step, total: None)
    own.load_base(tmp_path / "base")
    reviews(seed=5).to_csv(csv, index=False)
    with pytest.raises(StudyError, match="the data have changed"):
        own.load_base(tmp_path / "base")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.csv"}, r"task.data: nowhere.csv does not exist"),
        ({"label": "stars"}, r"no column 'stars'; it has text, label, score, film, number"),
        ({"label": "score"}, r"task.label: row 1 of column 'score' holds .*regression"),
        ({"model": "/nowhere/model"}, r"task.model: cannot load .*local folder"),
        ({"test_size": 199}, r"task.test_size|task.validation_size"),
        ({"size": 900}, r"train_sizes: expected 1 to 140 examples"),
        ({"size": 1}, r"train_sizes: 1 of 140 examples leaves one part with fewer than the 2 classes"),
        ({"group": "label"}, r"leave no group"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_with_the_key(
    tmp_path: Path, csv: str, changes: dict[str, Any], message: str
) -> None:
    given = {"data": csv, "model": str(bert(tmp_path / "m"))} | changes
    size = given.pop("size", 60)
    with pytest.raises(StudyError, match=message):
        OwnData(DataTask(name="text_classification", **given), size).new_model(0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "text,label\na,1\n,0\nb,1\nc,0\n" + "d,1\ne,0\n" * 20, r"row \d+ of column 'text' holds None"),
        ("x.csv", "", r"cannot read|holds no examples"),
        ("x.txt", "text", r"no known kind"),
        ("x.jsonl", "{broken", r"cannot read"),
        ("x.csv", "text,label\n" + "a,1\n" * 50, r"one class alone"),
        ("x.csv", "text,label\n" + "a,1\n" * 50 + "b,2\n", r"has the label 2"),
        ("x.npz", "no zip", r"cannot read"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(StudyError, match=message):
        own = task(tmp_path, "text_classification", str(path), size=4)
        for split in ("train", "validation", "test"):
            own.dataset(split)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.array([{}], dtype=object), label=np.zeros(1))
    with pytest.raises(StudyError, match="cannot read"):
        task(tmp_path, "image_classification", str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    "changes",
    [{"data": {"test": "a.csv"}}, {"input": ["a", "b", "c"]}, {"name": "causal_lm", "label": "x"}, {"colour": 1}],
)
def test_impossible_settings_are_no_task(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DataTask.model_validate({"name": "text_classification", "model": "m", "data": "a.csv"} | changes)
