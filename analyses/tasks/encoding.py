"""From columns to what a model reads: texts to tokens, images to pixels."""

from __future__ import annotations

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
from analyses.tasks.labels import shown
from landscape.losses import IGNORED

_SIXTEEN_BITS = 2**16 - 1


def texts_of(values: Sequence[Any], column: str) -> list[str]:
    """Texts, none of them missing.

    Raises:
        StudyError: A row holds no text.
    """
    for row, value in enumerate(values, 1):
        if not isinstance(value, str) or not value.strip():
            raise StudyError(
                f"task.input: row {row} of column {column!r} holds {shown(value)}; expected text in every row (an "
                "empty cell, NA or None is read as missing, a column of numbers alone as numbers)"
            )
    return list(values)


def check_room(tokenizer: Any, num_texts: int, max_length: int) -> None:
    """Refuse a length that has room for the tokenizer's own tokens alone.

    Raises:
        StudyError: It has.
    """
    added = tokenizer.num_special_tokens_to_add(pair=num_texts > 1)
    if max_length <= added:
        raise StudyError(
            f"task.max_length: {max_length} tokens have room for nothing beside the {added} that the tokenizer adds; "
            "raise it"
        )


def check_places(
    tokenizer: Any, texts: Sequence[list[str]], targets: list[str] | None, max_length: int, places: int, model: str
) -> None:
    """Refuse texts of more tokens than a model has places for, where so many would be kept.

    Raises:
        StudyError: One is longer, or its target is.
    """
    read = tokenizer(*texts, truncation=True, max_length=places + 1)["input_ids"]
    if targets is not None:
        written = tokenizer(text_target=targets, truncation=True, max_length=places + 1)["input_ids"]
        read = [max(both, key=len) for both in zip(read, written, strict=True)]
    lengths = [len(ids) for ids in read]
    if max(lengths) > places:
        raise StudyError(
            f"task.max_length: {max_length} tokens are kept of a text, and row {lengths.index(max(lengths)) + 1} has "
            f"more than the {places} that {model} has places for; set it to {places} at most"
        )


def check_two_tokens(tokenizer: Any, texts: Sequence[list[str]]) -> None:
    """Refuse texts without a next token to predict.

    Raises:
        StudyError: One has fewer than two tokens.
    """
    lengths = [len(ids) for ids in tokenizer(*texts, truncation=True, max_length=2)["input_ids"]]
    if min(lengths) < 2:
        raise StudyError(
            f"task.data: expected texts of two tokens and more, of which the next one is predicted; row "
            f"{lengths.index(min(lengths)) + 1} and {sum(length < 2 for length in lengths) - 1} others have fewer; "
            "leave these out"
        )


def check_tagged(words: Sequence[Any], tags: Sequence[Any], column: str) -> None:
    """Refuse rows that are no words with one tag each.

    Raises:
        StudyError: Words or tags of a row are no list, a word is no text, or there are not as many of one as of others.
    """
    for row, (own, marks) in enumerate(zip(words, tags, strict=True), 1):
        if not isinstance(own, list | tuple) or not all(isinstance(word, str) for word in own) or not own:
            raise StudyError(f"task.input: row {row} of column {column!r} holds {shown(own)}; expected a list of words")
        if not isinstance(marks, list | tuple) or len(marks) != len(own):
            got = f"{len(marks)} tags" if isinstance(marks, list | tuple) else shown(marks)
            raise StudyError(f"task.label: row {row} has {got} for {len(own)} words; expected one a word")


def check_counting(tokenizer: Any, words: Sequence[Any], tags: Sequence[Any], max_length: int) -> None:
    """Refuse rows none of whose tags counts: a batch of such rows has no loss.

    Raises:
        StudyError: All tags of a row are -100, or cut off.
    """
    marks = [[0 if tag != IGNORED else IGNORED for tag in own] for own in tags]
    for row, example in enumerate(tagged_tokens(tokenizer, words, marks, max_length), 1):
        if not bool((example["labels"] != IGNORED).any()):
            cut = any(mark != IGNORED for mark in marks[row - 1])
            fix = f"none within the {max_length} tokens of task.max_length; raise it" if cut else "leave the row out"
            raise StudyError(f"task.label: row {row} has no tag that counts ({IGNORED} does not): {fix}")


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


def check_sizes(images: Sequence[Tensor], expected: tuple[int, ...] | None, fix: str) -> None:
    """Refuse images of another size than the model's, or than each other where it takes any.

    Raises:
        StudyError: One is; ``fix`` ends the message.
    """
    wanted = expected or tuple(images[0].shape)
    wrong = next((tuple(image.shape) for image in images if tuple(image.shape) != wanted), None)
    if wrong is not None:
        takes = f"the model takes {wanted}" if expected else f"another has {wanted}"
        raise StudyError(f"task.input: an image has shape {wrong}; {takes} (channels, height, width){fix}")


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
        check_sizes(tensors, (channels, *(shape[::-1] if shape else tensors[0].shape[1:])), "")
        return tensors
    pictures = [_eight_bits(image).convert("L" if channels == 1 else "RGB") for image in images]
    local = Path(model).is_dir()
    if channels == 3 and (not local or (Path(model) / "preprocessor_config.json").is_file()):
        processor = AutoImageProcessor.from_pretrained(model, local_files_only=local)
        processed = list(processor(pictures, return_tensors="pt")["pixel_values"])
        fixed = (channels, *shape[::-1]) if shape and not getattr(processor, "do_pad", False) else None
        check_sizes(processed, fixed, ": its image processor makes another size; mend its preprocessor_config.json")
        return processed
    if shape:
        pictures = [picture.resize(shape) for picture in pictures]
    arrays = [np.asarray(picture) for picture in pictures]
    tensors = [_array_pixels(array if array.ndim == 2 else array.transpose(2, 0, 1)) for array in arrays]
    check_sizes(tensors, None, ", and it has neither image_size nor a processor: resize them to one size")
    return tensors


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
