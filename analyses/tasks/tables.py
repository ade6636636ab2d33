"""Examples from files of the user's: columns by name, whatever the format."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses.study.base import StudyError

Table = Mapping[str, Sequence[Any]]
"""Columns of equal length."""

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}
_EXPECTED = f"a file that ends in {', '.join([*FORMATS, '.npz'])}, an image folder, or a saved Hugging Face data set"


def read_table(place: str, option: str = "task.data") -> Table:
    """All columns of a file or folder.

    Args:
        place: ``.csv``, ``.tsv``, ``.json`` or ``.jsonl`` (one object a line), ``.parquet``, ``.npz`` (arrays of equal
            length, no pickles), a folder of images with one folder a class, or one written by
            ``datasets.Dataset.save_to_disk``.
        option: What to call the place in messages.

    Raises:
        StudyError: There is nothing, it is of no known kind, it cannot be read, or it is empty.
    """
    path = Path(place)
    if not path.exists():
        raise StudyError(f"{option}: {place} does not exist; expected {_EXPECTED}")
    if path.is_file() and path.suffix not in {*FORMATS, ".npz"}:
        raise StudyError(f"{option}: {place} is of no known kind; expected {_EXPECTED}")
    try:
        table = _arrays(path) if path.suffix == ".npz" else _data_set(path)
        table = _without_dates(table)
    except StudyError as error:
        raise StudyError(f"{option}: {str(error).removeprefix('task.data: ')}") from error
    except Exception as error:  # readers raise what they like about broken files
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise StudyError(f"{option}: cannot read {place}: {reason}") from error
    lengths = {name: len(table[name]) for name in columns(table)}
    if not lengths or not all(lengths.values()):
        raise StudyError(f"{option}: {place} holds no examples")
    if len(set(lengths.values())) > 1:
        raise StudyError(f"{option}: the arrays of {place} differ in length: {lengths}; expected one row an example")
    return table


def columns(table: Table) -> list[str]:
    """Names of a table's columns."""
    return list(getattr(table, "column_names", None) or table)


def class_names(table: Table, column: str) -> list[str]:
    """Names of the classes that a column's numbers stand for, in a data set that knows them; else none."""
    feature = (getattr(table, "features", None) or {}).get(column)
    while feature is not None and hasattr(feature, "feature"):  # of a list's entries
        feature = feature.feature
    return list(getattr(feature, "names", None) or [])


def digest(place: str) -> str:
    """A checksum of a file's content, or of the names and sizes of a folder's files."""
    path = Path(place)
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    listing = sorted((str(one.relative_to(path)), one.stat().st_size) for one in path.rglob("*") if one.is_file())
    return hashlib.sha256(repr(listing).encode()).hexdigest()


_OF_MODELS = (".json", ".safetensors", ".bin", ".txt", ".model")


def model_digest(folder: Path) -> str:
    """A checksum of the files of a model's folder: its weights, its configuration, its tokenizer or processor."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in _OF_MODELS]
    stamps = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _digest_of(stamps)


@lru_cache(maxsize=8)
def _digest_of(stamps: tuple[tuple[Path, int, int], ...]) -> str:
    """Of the files' names and contents; read once as long as sizes and times stay."""
    whole = hashlib.sha256()
    for path, _, _ in stamps:
        whole.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while piece := file.read(2**20):
                whole.update(piece)
    return whole.hexdigest()


def _arrays(path: Path) -> Table:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for name, array in arrays.items():
        if array.ndim == 0:
            raise StudyError(f"the array {name!r} of {path} is a single number; expected one row an example, or none")
    return arrays


def _without_dates(table: Table) -> Table:
    """The table with dates as the file wrote them: JSON has texts alone, which the reader takes for times."""
    for name, feature in (getattr(table, "features", None) or {}).items():
        if str(getattr(feature, "dtype", "")).startswith(("timestamp", "date")):
            texts = [None if value is None else _written(value) for value in table[name]]
            table = table.remove_columns(name).add_column(name, texts)  # type: ignore[attr-defined]
    return table


def _written(moment: Any) -> str:
    text = str(moment.isoformat())
    return text.removesuffix("T00:00:00")


def _data_set(path: Path) -> Table:
    if find_spec("datasets") is None:
        raise StudyError("task.data: reading it needs the package 'datasets'; pip install 'bilora-landscape[data]'")
    import datasets

    with _quiet(datasets), tempfile.TemporaryDirectory() as cache:
        options: dict[str, Any] = {"cache_dir": cache, "keep_in_memory": True}
        if path.is_file():
            kind = FORMATS[path.suffix]
            if kind == "csv":
                options |= _as_written(path)
            return getattr(datasets.Dataset, f"from_{kind}")(str(path), **options)
        if (path / "dataset_info.json").is_file():
            return datasets.load_from_disk(str(path), keep_in_memory=True)
        if (path / "dataset_dict.json").is_file():
            raise StudyError(
                f"task.data: {path} holds several data sets; give one of its folders, {path}/train say, or in a study "
                f"the places by split, {{train: {path}/train, …}}"
            )
        if not any(one.is_dir() for one in path.iterdir()):
            raise StudyError(f"task.data: {path} is a folder without folders of images; expected {_EXPECTED}")
        return datasets.load_dataset("imagefolder", data_dir=str(path), split="train", **options)


_DIGITS = 18
"""Of the whole numbers that have room in 64 bits; longer ones are names."""


def _as_written(path: Path) -> dict[str, Any]:
    """Options to read a file's columns with: numbers with leading zeros ("01") are names, and stay what they are.

    Raises:
        StudyError: The file has no row below its header.
    """
    options: dict[str, Any] = {"sep": "\t"} if path.suffix == ".tsv" else {}
    texts = pd.read_csv(path, dtype=str, keep_default_na=False, **options)
    if texts.empty:
        raise StudyError(f"{path} holds no examples")
    whole = [name for name in texts.columns if texts[name].str.fullmatch(r"-?\d+").all()]
    padded = [name for name in whole if _zeros(texts[name]).any() or texts[name].str.len().max() > _DIGITS]
    return options | ({"converters": dict.fromkeys(padded, str)} if padded else {})


def _zeros(texts: pd.Series) -> pd.Series:
    """Whether a number is written with zeros in front."""
    return texts.str.match(r"-?0\d")


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No progress bars of the library's while it reads."""
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
