"""From columns to what a model reads: texts to tokens, images to pixels, labels to classes."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoImageProcessor

from analyses.study.base import StudyError
from analyses.tasks.base import Examples
from landscape.losses import IGNORED


def check_classes(labels: Sequence[Any], column: str) -> None:
    """Refuse labels that name no class.

    Raises:
        StudyError: One is missing, a list, or a number with digits after the point.
    """
    whole = sum(isinstance(label, float) and label.is_integer() for label in labels)
    for row, label in enumerate(labels, 1):
        if isinstance(label, float) and label.is_integer() and whole < len(labels):
            continue  # whole numbers in a column with gaps; the gap is what to name
        if not isinstance(label, str | numbers.Integral | bool):
            raise StudyError(
                f"task.label: row {row} of column {column!r} holds {_shown(label)}; expected a whole number or a name "
                "in every row (for numbers to predict, use task.name: regression; an empty cell, NA or None is read as "
                "missing)"
            )


def _shown(value: Any) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else f"{value!r:.60}"


_SIXTEEN_BITS = 2**16 - 1


def classes_of(labels: Sequence[Any], column: str, known: dict[str, int], names: Sequence[str] = ()) -> dict[Any, int]:
    """Index of every label: the ``known`` ones by name, else that of the data's own ``names``, else in their order.

    Raises:
        StudyError: There is one class alone.
    """
    distinct = set(labels)
    if len(distinct) < 2:
        raise StudyError(f"task.label: column {column!r} holds one class alone, {next(iter(distinct))!r}")
    if known:
        return {label: known[str(label)] for label in distinct}
    if names:
        return {name: index for index, name in enumerate(names)}
    return {label: index for index, label in enumerate(sorted(distinct, key=lambda one: (isinstance(one, str), one)))}


def numbers_of(labels: Sequence[Any], column: str) -> list[float]:
    """Labels of a regression.

    Raises:
        StudyError: A label is no finite number.
    """
    for row, label in enumerate(labels, 1):
        if not isinstance(label, numbers.Real) or not math.isfinite(label):
            raise StudyError(f"task.label: row {row} of column {column!r} holds {label!r}; expected a finite number")
    return [float(label) for label in labels]


def texts_of(values: Sequence[Any], column: str) -> list[str]:
    """Texts, none of them missing.

    Raises:
        StudyError: A row holds no text.
    """
    for row, value in enumerate(values, 1):
        if not isinstance(value, str) or not value.strip():
            raise StudyError(
                f"task.input: row {row} of column {column!r} holds {_shown(value)}; expected text in every row"
            )
    return list(values)


def check_tagged(words: Sequence[Any], tags: Sequence[Any], column: str) -> None:
    """Refuse rows that are no words with one tag each.

    Raises:
        StudyError: Words or tags of a row are no list, a word is no text, or there are not as many of one as of others.
    """
    for row, (own, marks) in enumerate(zip(words, tags, strict=True), 1):
        if not isinstance(own, list | tuple) or not all(isinstance(word, str) for word in own) or not own:
            raise StudyError(
                f"task.input: row {row} of column {column!r} holds {_shown(own)}; expected a list of words"
            )
        if not isinstance(marks, list | tuple) or len(marks) != len(own):
            got = f"{len(marks)} tags" if isinstance(marks, list | tuple) else _shown(marks)
            raise StudyError(f"task.label: row {row} has {got} for {len(own)} words; expected one a word")


def tagged_tokens(
    tokenizer: Any, words: Sequence[Sequence[str]], tags: Sequence[Sequence[int]], max_length: int
) -> list[Examples]:
    """Tokens of words, each word's tag at its first token, -100 elsewhere."""
    encoded = tokenizer([list(one) for one in words], is_split_into_words=True, truncation=True, max_length=max_length)
    examples = []
    for place, own in enumerate(tags):
        labels, before = [], None
        for word in encoded.word_ids(place):
            labels.append(IGNORED if word is None or word == before else own[word])
            before = word
        examples.append({"input_ids": torch.tensor(encoded["input_ids"][place]), "labels": torch.tensor(labels)})
    return examples


def pixels(model: str, images: Sequence[Any], config: Any) -> list[Tensor]:
    """Images as float tensors (channels, height, width).

    Pictures go through the model's own image processor, or are resized to its ``image_size`` and scaled to 0 to 1
    where it comes without one. Arrays are used as they are, those of whole numbers as parts of 255.

    Raises:
        StudyError: An array is no image.
    """
    channels, size = getattr(config, "num_channels", 3), getattr(config, "image_size", None)
    shape = (size, size) if isinstance(size, int) else tuple(size)[::-1] if size else None
    if isinstance(images[0], np.ndarray | np.generic):
        tensors = [_array_pixels(_channels_first(np.asarray(image), channels)) for image in images]
        expected = (channels, *(shape[::-1] if shape else tensors[0].shape[1:]))
        wrong = next((tuple(tensor.shape) for tensor in tensors if tuple(tensor.shape) != expected), None)
        if wrong is not None:
            raise StudyError(
                f"task.input: an image has shape {wrong}; the model takes {expected} (channels, height, width)"
            )
        return tensors
    pictures = [_eight_bits(image).convert("L" if channels == 1 else "RGB") for image in images]
    local = Path(model).is_dir()
    if channels == 3 and (not local or (Path(model) / "preprocessor_config.json").is_file()):
        processor = AutoImageProcessor.from_pretrained(model, local_files_only=local)
        return list(processor(pictures, return_tensors="pt")["pixel_values"])
    if shape:
        pictures = [picture.resize(shape) for picture in pictures]
    arrays = [np.asarray(picture) for picture in pictures]
    return [_array_pixels(array if array.ndim == 2 else array.transpose(2, 0, 1)) for array in arrays]


def check_images(images: Sequence[Any], column: str, config: Any) -> None:
    """Refuse rows that no image can be made of.

    Raises:
        StudyError: A file is damaged, or an array is no image.
    """
    channels = getattr(config, "num_channels", 3)
    for row in range(len(images)):
        try:
            image = images[row]
            if isinstance(image, np.ndarray | np.generic):
                _array_pixels(_channels_first(np.asarray(image), channels))
            else:
                _eight_bits(image).convert("RGB")
        except StudyError as error:
            raise StudyError(f"{error} (row {row + 1} of column {column!r})") from error
        except Exception as error:  # readers raise what they like about broken pictures
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise StudyError(
                f"task.input: row {row + 1} of column {column!r} cannot be read as an image: {reason}"
            ) from error


def _channels_first(image: np.ndarray, channels: int) -> np.ndarray:
    """An image with its channels first, where they stand last."""
    last = image.ndim == 3 and image.shape[0] != channels and image.shape[-1] == channels
    return image.transpose(2, 0, 1) if last else image


def _eight_bits(picture: Any) -> Any:
    """A picture of 16 bits as one of 8, which PIL would cut off at 255.

    Raises:
        StudyError: It holds other numbers than 0 to 65535.
    """
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > _SIXTEEN_BITS:
        raise StudyError(f"task.input: a picture of mode {picture.mode} holds other numbers than 0 to {_SIXTEEN_BITS}")
    return Image.fromarray((values / (_SIXTEEN_BITS / 255)).round().astype(np.uint8))


def _array_pixels(image: np.ndarray) -> Tensor:
    if image.ndim not in (2, 3):
        raise StudyError(
            f"task.input: an image has shape {image.shape}; expected (height, width) or (channels, height, width)"
        )
    scaled = image
    if np.issubdtype(image.dtype, np.integer):
        whole = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.unsignedinteger) else 255
        if image.min() < 0 or image.max() > whole:
            raise StudyError(
                f"task.input: an image holds whole numbers from {image.min()} to {image.max()}; expected parts of "
                f"{whole}, or numbers of floating type that are used as they are"
            )
        scaled = image / np.float32(whole)
    if not np.isfinite(scaled).all():
        raise StudyError("task.input: an image holds numbers that are not finite")
    array = np.ascontiguousarray(scaled if image.ndim == 3 else scaled[None], dtype=np.float32)
    return torch.from_numpy(array)


def padded(examples: Sequence[Examples], pad_token: int) -> Examples:
    """One batch; tokens are padded to the longest, with a mask, and labels of tokens with -100."""
    if "input_ids" not in examples[0]:
        return {key: torch.stack([one[key] for one in examples]) for key in examples[0]}
    fill = {"input_ids": pad_token, "labels": IGNORED}
    batch = {}
    for key in examples[0]:
        rows = [one[key] for one in examples]
        ragged = rows[0].ndim == 1
        batch[key] = (
            pad_sequence(rows, batch_first=True, padding_value=fill.get(key, 0)) if ragged else torch.stack(rows)
        )
    ids = [one["input_ids"] for one in examples]
    return batch | {"attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)}


def decoder_inputs(labels: Tensor, start: int, pad_token: int) -> Tensor:
    """What a decoder reads to predict the labels (n, T): them, one place later."""
    first = torch.full_like(labels[:, :1], start)
    return torch.cat([first, labels[:, :-1].where(labels[:, :-1] != IGNORED, pad_token)], dim=1)
