"""A model and data of the user's own: six kinds of tasks, from files and a Hugging Face model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from analyses.records import read_json, write_json
from analyses.study.base import StudyError
from analyses.study.data_settings import DataKind, DataTask
from analyses.tasks.base import Examples, Progress
from analyses.tasks.encoding import (
    check_counting,
    check_images,
    check_places,
    check_room,
    check_tagged,
    check_two_tokens,
    decoder_inputs,
    padded,
    pixels,
    tagged_tokens,
    texts_of,
)
from analyses.tasks.labels import (
    check_classes,
    classes_of,
    has_names,
    known_classes,
    named,
    numbers_of,
    of_one_type,
    plain,
)
from analyses.tasks.models import check_causal, token_places
from analyses.tasks.splits import by_groups, check_groups, draw
from analyses.tasks.tables import Table, class_names, columns, digest, model_digest, read_table
from landscape.losses import (
    IGNORED,
    PerExampleLoss,
    cross_entropy,
    mse,
    next_token_cross_entropy,
    token_cross_entropy,
    zero_one,
)

_MEASURED_TOGETHER = 32
_DATA, _MODEL = "data.json", "model"
"""What the data were when the base model was made, in its folder."""


@dataclass(frozen=True)
class Kind:
    """What kinds of tasks differ by.

    Attributes:
        auto: Class of `transformers` that makes the model.
        loss: Of single examples.
        error: 0 for a right prediction and 1 for a wrong one; None where nothing is right or wrong.
        classes: Whether labels are classes, which the model has to have a head for.
    """

    auto: str
    loss: PerExampleLoss
    error: PerExampleLoss | None
    classes: bool = False


_TOKENS, _NEXT = replace(zero_one, tokens="aligned"), replace(zero_one, tokens="next")
KINDS: Mapping[DataKind, Kind] = {
    "text_classification": Kind("AutoModelForSequenceClassification", cross_entropy, zero_one, classes=True),
    "token_classification": Kind("AutoModelForTokenClassification", token_cross_entropy, _TOKENS, classes=True),
    "image_classification": Kind("AutoModelForImageClassification", cross_entropy, zero_one, classes=True),
    "regression": Kind("AutoModelForSequenceClassification", mse, None),
    "causal_lm": Kind("AutoModelForCausalLM", next_token_cross_entropy, _NEXT),
    "seq2seq": Kind("AutoModelForSeq2SeqLM", token_cross_entropy, _TOKENS),
}


class OwnData:
    """Data and model of a `DataTask` for one training-set size.

    Dropout is off, so that methods paired by seed differ by their updates alone, and so that the loss that is trained
    is the loss that is measured.
    """

    def __init__(self, settings: DataTask, train_size: int, draw: int | None = None) -> None:
        self.settings, self.train_size, self._draw = settings, train_size, draw
        self._kind = KINDS[settings.name]
        self.loss, self.error = self._kind.loss, self._kind.error
        self._check_model()
        if settings.name != "image_classification":
            self._tokenizer  # noqa: B018
        for table in self._tables.values():  # before any long work: missing texts, and splits that cannot be made
            self._check_inputs(table)
        self._parts  # noqa: B018

    @cached_property
    def _tables(self) -> dict[str, Table]:
        wanted = [*self.settings.inputs, *filter(None, (self.settings.target, self.settings.group))]
        tables: dict[str, Table] = {}
        for split, place in self.settings.places.items():
            option = "task.data" if isinstance(self.settings.data, str) else f"task.data.{split}"
            tables[split] = read_table(place, option)
            for column in wanted:
                if column not in columns(tables[split]):
                    raise StudyError(
                        f"{option}: {place} has no column {column!r}; it has {', '.join(columns(tables[split]))}: "
                        "name yours under task.input, task.label and task.group"
                    )
        return tables

    def _check_model(self) -> None:
        """Refuse a model of another architecture than the task's, before anything is read with it."""
        name, config = self.settings.name, self._config
        decodes = bool(getattr(config, "is_encoder_decoder", False))
        if name == "seq2seq" and (not decodes or getattr(config, "decoder_start_token_id", None) is None):
            raise StudyError(
                f"task.model: {self.settings.model} is no encoder-decoder with a decoder_start_token_id in its "
                "config.json, which seq2seq needs"
            )
        if name != "seq2seq" and decodes:
            raise StudyError(f"task.model: {self.settings.model} is an encoder-decoder; expected a model for {name}")

    def _check_inputs(self, table: Table) -> None:
        if self.settings.name == "image_classification":
            check_images(table[self.settings.inputs[0]], self.settings.inputs[0], self._config)
            return
        if self.settings.name == "token_classification":
            words, tags = self.settings.inputs[0], self.settings.target or ""
            check_tagged(table[words][:], table[tags][:], words)
            check_counting(self._tokenizer, table[words][:], table[tags][:], self.settings.max_length)
            return
        texts = [texts_of(table[column][:], column) for column in self.settings.inputs]
        check_room(self._tokenizer, len(texts), self.settings.max_length)
        places = token_places(self._config, self._kind.auto, self.settings.max_length)
        if places and self.settings.max_length > places:
            targets = None  # a decoder has as many
            if self.settings.name == "seq2seq" and self.settings.target:
                targets = texts_of(table[self.settings.target][:], self.settings.target)
            check_places(self._tokenizer, texts, targets, self.settings.max_length, places, self.settings.model)
        if self.settings.name == "causal_lm":
            check_two_tokens(self._tokenizer, texts)

    @cached_property
    def _raw_labels(self) -> dict[str, list[Any]]:
        """The label column by table, as it stands there."""
        target = self.settings.target
        if target is None:
            return {}
        found = {}
        for split, table in self._tables.items():
            names = class_names(table, target)
            found[split] = [named(plain(label), names) for label in table[target]]
        classes = self._kind.classes and self.settings.name != "token_classification"
        return of_one_type(found) if classes else found

    @cached_property
    def _labels(self) -> dict[str, list[Any]]:
        """Labels by table: class indices, lists of them, numbers, or texts."""
        target = self.settings.target
        if target is None:
            return {split: [None] * len(table[self.settings.inputs[0]]) for split, table in self._tables.items()}
        raw = self._raw_labels
        if self.settings.name == "regression":
            return {split: numbers_of(values, target) for split, values in raw.items()}
        if self.settings.name == "seq2seq":
            return {split: texts_of(values, target) for split, values in raw.items()}
        if self.settings.name == "token_classification":
            index = self.classes | {IGNORED: IGNORED}
            return {split: [[index[tag] for tag in tags] for tags in values] for split, values in raw.items()}
        return {split: [self.classes[label] for label in values] for split, values in raw.items()}

    @cached_property
    def classes(self) -> dict[Any, int]:
        """Index of every label; empty where labels are no classes."""
        target = self.settings.target
        if not self._kind.classes or target is None:
            return {}
        labels = self._labelled
        check_classes(labels, target)
        known = known_classes(self._config, labels)
        return classes_of(labels, target, known, class_names(self._tables["train"], target))

    @property
    def class_names(self) -> list[str]:
        """The model's own."""
        return sorted(getattr(self._config, "label2id", None) or {})

    @property
    def knows_classes(self) -> bool:
        """Whether the model's own classes are the data's, or it has no classes with names that could be others."""
        if not self._kind.classes or not has_names(self._config):
            return True
        stand_for_themselves = self.classes == {index: index for index in range(len(self.classes))}
        return stand_for_themselves or bool(known_classes(self._config, self._labelled))

    @property
    def _labelled(self) -> list[Any]:
        """The labels of all examples, or of all their tokens."""
        labels = [label for table in self._raw_labels.values() for label in table]
        if self.settings.name != "token_classification":
            return labels
        return [tag for tags in labels for tag in tags if tag != IGNORED]

    @cached_property
    def _parts(self) -> dict[str, tuple[str, np.ndarray]]:
        """The table and the rows of each split."""
        single_class = self._kind.classes and self.settings.name != "token_classification"
        strata = self._raw_labels if single_class else {}
        parts: dict[str, tuple[str, np.ndarray]] = {}
        pool = np.arange(len(self._labels["train"]))
        share, from_train = {"test": 5, "validation": 10}, {}
        for split in ("test", "validation"):
            size = getattr(self.settings, f"{split}_size")
            if split not in self._tables:
                from_train[split] = size or max(1, len(pool) // share[split])
                continue
            rows = np.arange(len(self._labels[split]))
            option = f"task.{split}_size"
            rows, _ = draw(rows, size or len(rows), strata.get(split), self.settings.split_seed, option)
            parts[split] = split, rows
        if self.settings.group:
            groups = [plain(value) for value in self._tables["train"][self.settings.group]]
            check_groups(groups, self.settings.group)
            drawn, pool = by_groups(pool, from_train, groups, self.settings.split_seed)
            parts |= {split: ("train", rows) for split, rows in drawn.items()}
        else:
            for split, size in from_train.items():
                option, seed = f"task.{split}_size", self.settings.split_seed
                rows, pool = draw(pool, size, strata.get("train"), seed, option)
                parts[split] = "train", rows
        seed = self.settings.split_seed if self._draw is None else self._draw
        rows, _ = draw(pool, self.train_size, strata.get("train"), seed, "train_sizes")
        return parts | {"train": ("train", rows)}

    def dataset(self, split: str) -> list[Examples]:
        """The examples of a split as the model reads them."""
        source, rows = self._parts[split]
        chosen = [int(row) for row in rows]
        values = [[plain(self._tables[source][column][row]) for row in chosen] for column in self.settings.inputs]
        labels = [self._labels[source][row] for row in chosen]
        if self.settings.name == "image_classification":
            images = pixels(self.settings.model, values[0], self._config)
            return [
                {"pixel_values": image, "labels": torch.tensor(label)}
                for image, label in zip(images, labels, strict=True)
            ]
        limit = self.settings.max_length
        if self.settings.name == "token_classification":
            return tagged_tokens(self._tokenizer, values[0], labels, limit)
        texts = [texts_of(column, name) for column, name in zip(values, self.settings.inputs, strict=True)]
        tokens = self._tokenizer(*texts, truncation=True, max_length=limit)
        kept = [key for key in ("input_ids", "token_type_ids") if key in tokens]
        examples = [{key: torch.tensor(tokens[key][i]) for key in kept} for i in range(len(chosen))]
        for place, example in enumerate(examples):
            if self.settings.name == "causal_lm":
                example["labels"] = example["input_ids"].clone()
            elif self.settings.name == "seq2seq":
                target = self._tokenizer(text_target=labels[place], truncation=True, max_length=limit)
                example["labels"] = torch.tensor(target["input_ids"])
            else:
                example["labels"] = torch.tensor(labels[place])
        return examples

    def collate(self, examples: Sequence[Examples]) -> Examples:
        """A batch padded to its longest example."""
        if "input_ids" not in examples[0]:
            return padded(examples, 0)
        batch = padded(examples, self._pad_token)
        if self.settings.name == "seq2seq":
            start = self._config.decoder_start_token_id
            batch["decoder_input_ids"] = decoder_inputs(batch["labels"], start, self._pad_token)
        return batch

    def batches(self, split: str) -> list[Examples]:
        """All examples in order of length, the longest first: little padding, and no batch larger than the first."""
        examples = self.dataset(split)
        if "input_ids" in examples[0]:
            examples = sorted(examples, key=lambda example: len(example["input_ids"]), reverse=True)
        return [self.collate(examples[i : i + _MEASURED_TOGETHER]) for i in range(0, len(examples), _MEASURED_TOGETHER)]

    def new_model(self, seed: int) -> PreTrainedModel:
        """The model; what it has no weights for, a new head say, is drawn from the seed."""
        config = self._config
        for key, value in config.to_dict().items():
            if ("drop" in key or "pdrop" in key) and isinstance(value, float):
                setattr(config, key, 0.0)
        if self._kind.classes:
            if not known_classes(self._config, self._labelled):  # one that knows them keeps those that the data lack
                config.num_labels = len(self.classes)
                config.id2label = {index: str(label) for label, index in self.classes.items()}
                config.label2id = {name: index for index, name in config.id2label.items()}
        elif self.settings.name == "regression":
            config.num_labels, config.problem_type = 1, "regression"
        if self.settings.name != "image_classification":
            config.pad_token_id = self._pad_token
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, found = self._loaded(
                getattr(transformers, self._kind.auto), config=config, ignore_mismatched_sizes=True,
                output_loading_info=True, dtype=torch.float32,
            )  # fmt: skip
        missing, total = len(found["missing_keys"]), len(model.state_dict())
        if 2 * missing > total:
            raise StudyError(
                f"task.model: {self.settings.model} has weights for {total - missing} of the model's {total} tensors; "
                f"expected a model that fits task.name {self.settings.name}"
            )
        if self.settings.name == "causal_lm":
            check_causal(model, self.settings.model)
        return model.eval()

    def finished_model(self) -> PreTrainedModel | None:
        """The model as it is, if it has weights for all its parts; none if one, a head say, would have to be drawn."""
        auto = getattr(transformers, self._kind.auto)
        with torch.random.fork_rng(devices=[]):
            model, found = self._loaded(auto, output_loading_info=True, dtype=torch.float32)
        return None if found["missing_keys"] else model.eval()

    def create_base(self, path: Path, progress: Progress) -> None:
        """Save the model with the head that every method starts from, and what the data were."""
        self.new_model(self.settings.head_seed).save_pretrained(path)
        write_json(path / _DATA, self._digests())
        progress(1, 1)

    def load_base(self, path: Path) -> PreTrainedModel:
        """A model of this task from its folder.

        Raises:
            StudyError: The data have changed since the base model was made.
        """
        self.refuse_changed(path)
        auto = getattr(transformers, self._kind.auto)
        model: PreTrainedModel = auto.from_pretrained(path, local_files_only=True, dtype=torch.float32)
        return model.eval()

    def refuse_changed(self, path: Path) -> None:
        """Refuse the folder of a base model that was made for other data.

        Raises:
            StudyError: It was.
        """
        if not (path / _DATA).is_file():
            return
        began, now = read_json(path / _DATA), self._digests()
        changed = [key for key in began if began[key] != now.get(key)]  # older studies did not note the model
        if changed or now.keys() - began.keys() - {_MODEL}:
            what = "model: the model or its tokenizer has" if changed == [_MODEL] else "data: the data have"
            raise StudyError(
                f"task.{what} changed since this study began; put it back, or begin a study of the new one with "
                "another --out"
            )

    def _digests(self) -> dict[str, str]:
        """Checksums of the data, and of the model's files that a run reads."""
        found = {split: digest(place) for split, place in self.settings.places.items()}
        folder = Path(self.settings.model)
        return found | ({_MODEL: model_digest(folder)} if folder.is_dir() else {})

    @cached_property
    def _config(self) -> Any:
        return self._loaded(AutoConfig)

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self._loaded(AutoTokenizer)
        if tokenizer.pad_token is None:  # the mask says what counts, so any token will do
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    @property
    def _pad_token(self) -> int:
        token = self._tokenizer.pad_token_id  # a tokenizer without any special token has none
        return 0 if token is None else int(token)

    def _loaded(self, kind: Any, **options: Any) -> Any:
        """`from_pretrained` of the task's model."""
        name = self.settings.model
        if Path(name).is_file():
            raise StudyError(f"task.model: {name} is a file; expected the folder of a model, {Path(name).parent} say")
        local = Path(name).is_dir()
        try:
            return kind.from_pretrained(
                name, local_files_only=local, trust_remote_code=self.settings.trust_remote_code, **options
            )
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if kind is AutoTokenizer and local and not any(Path(name).glob("token*")):
                reason = "the folder holds no tokenizer"
            hint = "" if local else "; expected a local folder, or a name on the hub that can be reached from here"
            raise StudyError(f"task.model: cannot load {kind.__name__} from {name!r}: {reason}{hint}") from error
