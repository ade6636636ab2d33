"""Settings of the tasks that are made of the user's own model and data."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from analyses.study.base import Count, Settings

DataKind = Literal[
    "text_classification", "token_classification", "image_classification", "regression", "causal_lm", "seq2seq"
]
DATA_KINDS: tuple[DataKind, ...] = get_args(DataKind)
Split = Literal["train", "validation", "test"]

_INPUTS: dict[DataKind, str] = {"token_classification": "tokens", "image_classification": "image"}
_LABELS: dict[DataKind, str] = {"token_classification": "tags", "seq2seq": "target"}


class DataTask(Settings):
    """A model and data of the user's own; see `analyses.tasks.own_data`.

    Attributes:
        name: What is learned: ``text_classification``, ``token_classification``, ``image_classification``,
            ``regression`` (of one number from text), ``causal_lm`` or ``seq2seq``.
        model: Folder of a Hugging Face model with its tokenizer or image processor, or a name on the hub.
        data: A file (CSV, JSON lines, Parquet, ``.npz`` with images), an image folder with one folder a class, or a
            saved Hugging Face data set; or such places by split, ``train`` and optionally ``validation`` and ``test``.
            A split without a place of its own is drawn from ``train``. Relative places, the model's too, count from the
            folder where the command runs.
        input: Column of the input, or two for pairs of texts. Default ``text``, ``tokens`` or ``image``.
        label: Column of the label. Default ``label``, ``tags`` or ``target``; causal models need none. Classes
            have the numbers that the model's ``label2id`` gives their names, where it knows all of them, in any
            case; whole numbers that a head without names has stand for themselves; else the data set's own
            order of names counts, or the sorted one, and the model gets a new head. Tags of -100 are left out;
            a row needs one that counts.
        group: Column whose equal values stay in one split (one film, one patient).
        validation_size: Examples for validation (for tuning only). Default: all of its own place, else a tenth of the
            examples.
        test_size: Examples for testing. Default: all of its own place, else a fifth of the examples.
        max_length: Tokens kept of each text, at most as many as the model has places for if a text is as long.
        split_seed: Of the split.
        head_seed: Of the weights that the model does not have yet, a new head's say.
        trust_remote_code: Whether code that comes with the model or its tokenizer may run.
    """

    name: DataKind
    model: Annotated[str, Field(min_length=1)]
    data: str | dict[Split, str]
    input: str | Annotated[list[str], Field(min_length=1, max_length=2)] | None = None
    label: str | None = None
    group: str | None = None
    validation_size: Count | None = None
    test_size: Count | None = None
    max_length: Annotated[int, Field(ge=2)] = 128
    split_seed: int = 0
    head_seed: int = 0
    trust_remote_code: bool = False

    @field_validator("data")
    @classmethod
    def _has_training_data(cls, data: str | dict[Split, str]) -> str | dict[Split, str]:
        if isinstance(data, dict) and "train" not in data:
            raise ValueError(f"places by split need one for train, got {', '.join(data) or 'none'}")
        return data

    @model_validator(mode="after")
    def _inputs_of_its_kind(self) -> DataTask:
        if isinstance(self.input, list) and self.name not in ("text_classification", "regression"):
            raise ValueError(f"input: {self.name} reads one column, got {self.input}")
        if self.label is not None and self.name == "causal_lm":
            raise ValueError(f"label: causal_lm predicts the text itself and reads none, got {self.label!r}; drop it")
        return self

    @property
    def inputs(self) -> list[str]:
        """Columns of the input."""
        given = self.input if self.input is not None else _INPUTS.get(self.name, "text")
        return [given] if isinstance(given, str) else given

    @property
    def target(self) -> str | None:
        """Column of the label."""
        return None if self.name == "causal_lm" else self.label or _LABELS.get(self.name, "label")

    @property
    def places(self) -> dict[Split, str]:
        """Where each split lies that has a place of its own."""
        return {"train": self.data} if isinstance(self.data, str) else self.data

    def base_settings(self) -> dict[str, Any]:
        """What the model before fine-tuning depends on; the data give it its classes."""
        return self.model_dump(include={"name", "model", "data", "label", "head_seed"})
