"""Labels, lengths and pictures as users have them: the model's own classes, one class a name, or a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from analyses.cli import main
from analyses.comparing.data import FileData
from analyses.study import StudyError
from analyses.study.data_settings import DataTask
from analyses.tasks.own_data import OwnData
from tests.analyses.own import bert, reviews, t5
from tests.analyses.tasks.test_users_files import csv, task, vit


def named(names: tuple[str, str]) -> dict[str, Any]:
    return {"label2id": dict(zip(names, (0, 1), strict=True)), "id2label": dict(zip((0, 1), names, strict=True))}


def renamed(folder: Path, names: tuple[Any, Any], suffix: str = ".csv") -> Path:
    """Reviews whose good ones have the first name."""
    frame = reviews()[["text", "label"]]
    values = sorted(frame["label"].unique())
    frame["label"] = frame["label"].map(dict(zip(values, names, strict=True)))
    path = folder / f"data{suffix}"
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


@pytest.mark.parametrize(
    ("own", "written", "suffix"),
    [
        (("true", "false"), (True, False), ".csv"),
        (("true", "false"), (True, False), ".jsonl"),
        (("True", "False"), (True, False), ".csv"),
        (("POSITIVE", "NEGATIVE"), ("positive", "negative"), ".csv"),
        (("yes", "no"), ("Yes", "No"), ".jsonl"),
    ],
)
def test_a_models_classes_are_found_in_any_case(
    tmp_path: Path, own: tuple[str, str], written: tuple[Any, Any], suffix: str
) -> None:
    model, data = bert(tmp_path / "model", **named(own)), renamed(tmp_path, written, suffix)
    classes = task("text_classification", data, model).classes
    assert [classes[label] for label in written] == [0, 1]
    assert FileData(str(data)).task(str(model)).classes == classes


def test_a_finished_head_of_other_names_is_not_numbered_by_sorting(tmp_path: Path) -> None:
    model, data = bert(tmp_path / "model", **named(("yes", "no"))), renamed(tmp_path, ("good", "bad"))
    message = "--label: .* names its classes no, yes, and .* has bad, good: which is which cannot be told"
    with pytest.raises(StudyError, match=message):
        FileData(str(data)).task(str(model))
    assert main(["compare", str(model), "--data", str(data), "--what", "fit"]) == 2
    assert task("text_classification", data, model).classes == {"bad": 0, "good": 1}  # a study makes a head anew
    assert FileData(str(data)).task(str(bert(tmp_path / "nameless"))).classes == {"bad": 0, "good": 1}
    numbered = renamed(tmp_path, (0, 1))  # numbers from 0 on stand for themselves, whatever they are called
    assert FileData(str(numbered)).task(str(model)).classes == {0: 0, 1: 1}


def of_two_files(tmp_path: Path, train: list[Any], test: list[Any]) -> OwnData:
    places = {}
    for split, labels in (("train", train), ("test", test)):
        frame = pd.DataFrame({"text": ["good film"] * len(labels), "label": labels})
        frame.to_csv(tmp_path / f"{split}.csv", index=False)
        places[split] = str(tmp_path / f"{split}.csv")
    given = {"name": "text_classification", "model": str(bert(tmp_path / "model")), "validation_size": 2}
    return OwnData(DataTask.model_validate(given | {"data": places}), 8)


def test_a_class_is_one_whatever_the_other_file_makes_of_it(tmp_path: Path) -> None:
    classes = of_two_files(tmp_path, [3, 7] * 8, ["7", "bad", "7", "bad"]).classes
    assert classes == {"3": 0, "7": 1, "bad": 2}


@pytest.mark.parametrize("labels", [["pos", "pos ", "neg"], ["a", " a", "b"]])
def test_names_that_differ_in_blanks_are_one_by_mistake(tmp_path: Path, labels: list[str]) -> None:
    data = csv(tmp_path, pd.DataFrame({"text": ["good film"] * 30, "label": labels * 10}))
    with pytest.raises(StudyError, match="which differ in blanks or in type alone"):
        task("text_classification", data, bert(tmp_path / "model"))


def sentences(path: Path, tags: list[list[int | str]]) -> Path:
    rows = [{"words": ["good", "film", "town"][: len(own)], "tags": own} for own in tags]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_without_a_tag_that_counts_are_refused(tmp_path: Path) -> None:
    names = {"input": "words", "label": "tags"}
    ignored = sentences(tmp_path / "a.jsonl", [[0, 1, 0]] * 30 + [[-100, -100]])
    with pytest.raises(StudyError, match=r"row 31 has no tag that counts \(-100 does not\): leave the row out"):
        task("token_classification", ignored, bert(tmp_path / "model"), **names)
    late = sentences(tmp_path / "b.jsonl", [[0, 1, 0]] * 29 + [[-100, -100, 1]])
    with pytest.raises(StudyError, match=r"none within the 4 tokens of task.max_length; raise it"):
        task("token_classification", late, bert(tmp_path / "other"), max_length=4, **names)
    assert task("token_classification", late, bert(tmp_path / "third"), max_length=8, **names).classes


def test_lengths_that_leave_no_text_are_refused(tmp_path: Path) -> None:
    data = renamed(tmp_path, ("good", "bad"))
    with pytest.raises(StudyError, match=r"task.max_length: 2 tokens have room for nothing beside the 2 that"):
        task("text_classification", data, bert(tmp_path / "model"), max_length=2)


def test_targets_have_places_in_the_decoder(tmp_path: Path) -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    from tests.analyses.own import VOCABULARY, save_tokenizer

    config = BartConfig(
        vocab_size=len(VOCABULARY), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=16,
        decoder_start_token_id=2, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(tmp_path / "bart")
    save_tokenizer(tmp_path / "bart", framed=True)
    frame = pd.DataFrame({"text": ["good film"] * 40, "target": ["good town"] * 39 + ["good town " * 12]})
    data = csv(tmp_path, frame)
    with pytest.raises(StudyError, match=r"row 40 has more than the 16 that .* has places for; set it to 16 at most"):
        task("seq2seq", data, tmp_path / "bart", max_length=64)
    assert task("seq2seq", data, tmp_path / "bart", max_length=16).dataset("train")
    assert task("seq2seq", data, t5(tmp_path / "t5"), max_length=64).dataset("train")  # positions are relative


def pictures(folder: Path, sizes: list[int]) -> Path:
    for number, size in enumerate(sizes):
        for name in ("ant", "bee"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (size, size), (number, 0, 0)).save(folder / name / f"{number:02}.png")
    return folder


def test_pictures_of_two_sizes_need_somebody_who_resizes(tmp_path: Path) -> None:
    config = ResNetConfig(num_channels=3, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=2)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    own = task("image_classification", pictures(tmp_path / "mixed", [8, 12] * 10), tmp_path / "resnet")
    with pytest.raises(StudyError, match=r"shape \(3, .*; another has .* neither image_size nor a processor"):
        own.dataset("train")
    equal = task("image_classification", pictures(tmp_path / "equal", [8] * 20), tmp_path / "resnet")
    assert equal.dataset("train")[0]["pixel_values"].shape == (3, 8, 8)


def test_a_processor_of_another_size_than_the_model_is_named(tmp_path: Path) -> None:
    model = vit(tmp_path / "vit", channels=3)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(model)
    own = task("image_classification", pictures(tmp_path / "images", [8] * 20), model)
    with pytest.raises(StudyError, match=r"the model takes \(3, 8, 8\) .* its image processor makes another size"):
        own.dataset("train")


def test_arrays_without_rows_dates_long_numbers_and_missing_groups(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", image=np.zeros((20, 1, 8, 8)), label=np.int64(3))
    with pytest.raises(StudyError, match=r"the array 'label' of .* is a single number; expected one row an example"):
        task("image_classification", tmp_path / "e.npz", vit(tmp_path / "vit"))
    model, text = bert(tmp_path / "model"), ["good film"] * 40
    long = csv(tmp_path, pd.DataFrame({"text": text, "label": [str(10**25), str(10**25 + 1)] * 20}))
    assert set(task("text_classification", long, model).classes) == {str(10**25), str(10**25 + 1)}
    dated = tmp_path / "dated.jsonl"
    rows = [{"text": "good film", "label": day} for day in ("2020-01-01", "2020-02-01")] * 20
    dated.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert task("text_classification", dated, model).classes == {"2020-01-01": 0, "2020-02-01": 1}
    frame = pd.DataFrame({"text": text, "label": [0, 1] * 20, "who": ["a", "b", "c", None] * 10})
    with pytest.raises(
        StudyError, match=r"task.group: row 4 of column 'who' holds None; expected a group in every row"
    ):
        task("text_classification", csv(tmp_path, frame), model, group="who")


def test_compare_names_its_own_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame({"text": ["good film"] * 61, "label": ["yes", "no"] * 30 + ["maybe"]})
    model, data = bert(tmp_path / "model"), csv(tmp_path, frame)
    assert main(["compare", str(model), "--data", str(data), "--what", "fit", "--examples", "30"]) == 2
    said = capsys.readouterr().err
    assert "--examples: only 1 of the 61 examples" in said and "train_sizes" not in said


def test_a_run_that_diverged_is_told_where_it_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    from tests.analyses.mini import QUICK

    methods = {"lora": {"learning_rate": 1e30}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(QUICK | {"methods": methods}))
    arguments = ["--config", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), "--method", "lora"]
    assert main(["train", *arguments]) == 0
    said = capsys.readouterr()
    assert "diverged: lora-seed0-n20: the training loss" in said.err and "lora-seed0-n20" in said.out
