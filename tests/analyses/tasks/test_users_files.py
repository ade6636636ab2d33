"""Labels, pictures and tokens as users' files hold them: the model's own numbers, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertLMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from analyses.study.base import StudyError
from analyses.study.data_settings import DataTask
from analyses.tasks.own_data import OwnData
from tests.analyses.own import VOCABULARY, bert, gpt2, reviews, save_tokenizer, t5


def task(name: str, data: Path, model: Path, size: int = 20, **settings: Any) -> OwnData:
    return OwnData(DataTask(name=name, model=str(model), data=str(data), **settings), size)


def vit(folder: Path, channels: int = 1, **names: Any) -> Path:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4,
        num_channels=channels, **names,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


def csv(folder: Path, frame: pd.DataFrame) -> Path:
    frame.to_csv(folder / "data.csv", index=False)
    return folder / "data.csv"


@pytest.mark.parametrize("order", [("fresh", "rotten"), ("rotten", "fresh")])
def test_classes_of_a_saved_data_set_go_by_their_names(tmp_path: Path, order: tuple[str, str]) -> None:
    frame = reviews()
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(order))})
    Dataset.from_dict({"text": frame["text"], "label": frame["label"]}, features=features).save_to_disk(
        tmp_path / "data"
    )
    knowing = bert(tmp_path / "knowing", label2id={"rotten": 0, "fresh": 1}, id2label={0: "rotten", 1: "fresh"})
    own = task("text_classification", tmp_path / "data", knowing)
    assert {name: own.classes[name] for name in order} == {"rotten": 0, "fresh": 1}
    other = task("text_classification", tmp_path / "data", bert(tmp_path / "other"))
    assert other.classes == {name: index for index, name in enumerate(order)}
    assert other.new_model(0).config.id2label == dict(enumerate(order))
    rows = own._parts["train"][1]
    labels = [int(example["labels"]) for example in own.dataset("train")]
    assert labels == [int(frame["label"].iloc[row] == "fresh") for row in rows]


def test_classes_of_an_image_folder_go_by_their_names(tmp_path: Path) -> None:
    for name, shade in {"ant": 20, "zebra": 200}.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("L", (8, 8), shade).save(tmp_path / "pictures" / name / f"{number}.png")
    model = vit(tmp_path / "vit", label2id={"zebra": 0, "ant": 1}, id2label={0: "zebra", 1: "ant"})
    own = task("image_classification", tmp_path / "pictures", model, 8)
    for example in own.dataset("train"):
        assert int(example["labels"]) == int(float(example["pixel_values"].max()) < 0.5)


def test_numbers_that_a_nameless_head_has_are_used_as_they_stand(tmp_path: Path) -> None:
    frame = reviews().assign(label=lambda one: (one["label"] == "fresh") + 1)
    own = task("text_classification", csv(tmp_path, frame), bert(tmp_path / "m", num_labels=3))
    assert own.classes == {1: 1, 2: 2} and own.new_model(0).config.num_labels == 3
    beyond = frame.assign(label=frame["label"] + 5)
    renumbered = task("text_classification", csv(tmp_path, beyond), bert(tmp_path / "n", num_labels=3))
    assert renumbered.classes == {6: 0, 7: 1} and renumbered.new_model(0).config.num_labels == 2


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_pictures_of_sixteen_bits_keep_their_shades(tmp_path: Path, mode: str) -> None:
    draw = np.random.default_rng(0)
    arrays = {}
    for name in ("dark", "light"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(15):
            array = draw.integers(0, 2**16, (8, 8)).astype(np.uint16 if mode == "I;16" else np.int32)
            Image.fromarray(array).save(tmp_path / "pictures" / name / f"{number}.{'png' if mode == 'I;16' else 'tif'}")
            arrays[round(float(array.sum()))] = array
    own = task("image_classification", tmp_path / "pictures", vit(tmp_path / "vit"), 6)
    for example in own.dataset("train"):
        shades = example["pixel_values"][0].double().numpy()
        nearest = min(np.abs(array / 65535 - shades).max() for array in arrays.values())
        assert nearest <= 0.5 / 255 + 1e-6


def arrays_file(folder: Path, images: np.ndarray, labels: Any = None) -> Path:
    np.savez(folder / "data.npz", image=images, label=np.arange(len(images)) % 2 if labels is None else labels)
    return folder / "data.npz"


def test_arrays_of_any_depth_and_channels_last(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    model = vit(tmp_path / "vit", channels=3)
    for kind in (np.uint8, np.uint16):
        whole = np.iinfo(kind).max
        images = draw.integers(0, whole, (24, 8, 8, 3)).astype(kind)
        own = task("image_classification", arrays_file(tmp_path, images), model, 8)
        rows = own._parts["train"][1]
        found = torch.stack([example["pixel_values"] for example in own.dataset("train")])
        expected = torch.tensor(images[rows].transpose(0, 3, 1, 2) / whole, dtype=torch.float32)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((24, 9, 9)), None, r"an image has shape \(1, 9, 9\); the model takes \(1, 8, 8\)"),
        (np.full((24, 8, 8), np.nan), None, "an image holds numbers that are not finite"),
        (np.full((24, 8, 8), 300, dtype=np.int64), None, "whole numbers from 300 to 300; expected parts of 255"),
        (np.zeros((24, 8, 8)), np.eye(2)[np.arange(24) % 2], r"row 1 of column 'label' holds an array of shape \(2,\)"),
        (np.zeros((24, 8, 8)), np.arange(24)[:, None] % 2, r"holds an array of shape \(1,\)"),
    ],
)
def test_arrays_that_are_no_images_or_classes_are_refused(
    tmp_path: Path, images: np.ndarray, labels: Any, message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        task("image_classification", arrays_file(tmp_path, images, labels), vit(tmp_path / "vit"), 8).dataset("train")


def tagged(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


def test_tags_of_minus_100_are_left_out(tmp_path: Path) -> None:
    rows = [{"tokens": ["the", "film", "was", "good"], "tags": [0, -100, 0, 1]} for _ in range(24)]
    own = task("token_classification", tagged(tmp_path, rows), bert(tmp_path / "m"), 8, label="tags")
    assert own.classes == {0: 0, 1: 1}
    assert own.dataset("train")[0]["labels"].tolist() == [-100, 0, -100, 0, 1, -100]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["the", "film"], "tags": [0, 1, 1]}, "task.label: row 3 has 3 tags for 2 words"),
        ({"tokens": ["the", "film"], "tags": [0]}, "row 3 has 1 tags for 2 words"),
        ({"tokens": None, "tags": [0, 1]}, "task.input: row 3 of column 'tokens' holds None"),
        ({"tokens": ["the", "film"], "tags": None}, "task.label: row 3 has None for 2 words"),
    ],
)
def test_words_and_tags_come_in_pairs(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    rows: list[dict[str, Any]] = [{"tokens": ["the", "good"], "tags": [0, 1]} for _ in range(24)]
    rows[2] = row
    with pytest.raises(StudyError, match=message):
        task("token_classification", tagged(tmp_path, rows), bert(tmp_path / "m"), 8, label="tags")


def test_labels_that_are_lists_or_missing_name_their_row(tmp_path: Path) -> None:
    rows = [{"text": "good film", "label": [0, 1]} for _ in range(24)]
    with pytest.raises(StudyError, match=r"row 1 of column 'label' holds \[0, 1\]"):
        task("text_classification", tagged(tmp_path, rows), bert(tmp_path / "m"), 8)
    frame = reviews().assign(label=lambda one: (one["label"] == "fresh").astype(float))
    frame.loc[6, "label"] = np.nan
    with pytest.raises(StudyError, match=r"row 7 of column 'label' holds (nan|None); .* read as missing"):
        task("text_classification", csv(tmp_path, frame), bert(tmp_path / "n"), 8)


def test_texts_longer_than_the_model_name_the_setting(tmp_path: Path) -> None:
    frame = reviews()
    frame.loc[4, "text"] = " ".join(["good"] * 60)
    with pytest.raises(
        StudyError, match=r"task.max_length: 128 tokens .* row 5 has more than the 32 .* set it to 32 at"
    ):
        task("text_classification", csv(tmp_path, frame), bert(tmp_path / "m"))
    own = task("text_classification", csv(tmp_path, frame), bert(tmp_path / "m"), max_length=32)
    assert max(len(example["input_ids"]) for example in own.dataset("train")) <= 32


def encoder_as_language_model(folder: Path) -> Path:
    config = BertConfig(vocab_size=15, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertLMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder, framed=True)
    return folder


def test_models_that_do_not_fit_the_task_are_refused(tmp_path: Path) -> None:
    pairs = csv(tmp_path, reviews().assign(target="good"))
    with pytest.raises(StudyError, match="is no encoder-decoder with a decoder_start_token_id"):
        task("seq2seq", pairs, bert(tmp_path / "bert"))
    with pytest.raises(StudyError, match="is no encoder-decoder with a decoder_start_token_id"):
        task("seq2seq", pairs, gpt2(tmp_path / "gpt2"))
    with pytest.raises(StudyError, match="is an encoder-decoder; expected a model for text_classification"):
        task("text_classification", pairs, t5(tmp_path / "t5"))
    with pytest.raises(StudyError, match=r"config.json is a file; expected the folder of a model"):
        task("text_classification", pairs, tmp_path / "bert" / "config.json")
    seeing = task("causal_lm", pairs, encoder_as_language_model(tmp_path / "lm"), input="text")
    with pytest.raises(StudyError, match="predicts a token from those after it, too"):
        seeing.new_model(0)
    task("causal_lm", pairs, gpt2(tmp_path / "gpt2"), input="text").new_model(0)


def test_texts_of_one_token_have_no_next_one(tmp_path: Path) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("text\n" + "good film\n" * 30 + "good\nbad\n" + "good film\n" * 10)
    with pytest.raises(StudyError, match=r"texts of two tokens and more.*row 31 and 1 others have fewer; leave these"):
        task("causal_lm", texts, gpt2(tmp_path / "gpt2"), input="text")


def test_a_picture_that_cannot_be_read_is_found_before_any_work(tmp_path: Path) -> None:
    for name, shade in {"ant": 20, "zebra": 200}.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (8, 8), shade).save(tmp_path / "pictures" / name / f"{number:02}.png")
    model = vit(tmp_path / "model")
    task("image_classification", tmp_path / "pictures", model)
    (tmp_path / "pictures" / "ant" / "03.png").write_bytes(b"broken")
    with pytest.raises(StudyError, match=r"row 4 of column 'image' cannot be read as an image"):
        task("image_classification", tmp_path / "pictures", model)
    images = np.random.default_rng(0).random((40, 8, 8)).astype(np.float32)
    images[30, 2, 2] = np.nan
    np.savez(tmp_path / "arrays.npz", image=images, label=np.arange(40) % 2)
    with pytest.raises(StudyError, match=r"not finite \(row 31 of column 'image'\)"):
        task("image_classification", tmp_path / "arrays.npz", model)


def test_numbers_with_leading_zeros_are_names(tmp_path: Path) -> None:
    frame = reviews()[["text"]].assign(label=[("01", "1", "2")[row % 3] for row in range(len(reviews()))])
    own = task("text_classification", csv(tmp_path, frame), bert(tmp_path / "model"))
    assert own.classes == {"01": 0, "1": 1, "2": 2}
    plain = task("text_classification", csv(tmp_path, frame.replace("01", "0")), bert(tmp_path / "model"))
    assert plain.classes == {0: 0, 1: 1, 2: 2}


def test_a_header_alone_holds_no_examples(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\n")
    with pytest.raises(StudyError, match="holds no examples"):
        task("text_classification", tmp_path / "data.csv", bert(tmp_path / "model"))


@pytest.mark.parametrize(("padding", "places"), [(1, 32), (0, 33)])
def test_positions_behind_the_paddings_are_the_limit(tmp_path: Path, padding: int, places: int) -> None:
    config = RobertaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=34, pad_token_id=padding,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config)
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model", framed=True)
    frame = reviews()[["text", "label"]].assign(text=" ".join(["film"] * 60))
    data = csv(tmp_path, frame)
    with pytest.raises(StudyError, match=f"set it to {places} at most"):
        task("text_classification", data, tmp_path / "model")
    own = task("text_classification", data, tmp_path / "model", max_length=places)
    batch = own.batches("train")[0]
    assert batch["input_ids"].shape[1] == places
    model.config.pad_token_id = own.new_model(0).config.pad_token_id
    ids = batch["input_ids"].clone()
    with torch.no_grad():
        model(input_ids=torch.full_like(ids, 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, places + 1), 5))


def test_a_tokenizer_without_special_tokens_pads_with_what_the_mask_hides(tmp_path: Path) -> None:
    bert(tmp_path / "model")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for file in (tmp_path / "model").glob("*token*"):
        file.unlink()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "model")
    own = task("text_classification", csv(tmp_path, reviews()[["text", "label"]]), tmp_path / "model")
    assert own.collate(own.dataset("train")[:4])["attention_mask"].shape[0] == 4


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    data = csv(tmp_path, reviews()[["text", "label"]])
    with pytest.raises(StudyError, match="the folder holds no tokenizer"):
        task("text_classification", data, vit(tmp_path / "model"))
