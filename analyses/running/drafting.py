"""A first study of one's own model and data: what to adapt, at which radii, and how long it will take."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Template
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from analyses.measures.minima import load_subject
from analyses.measures.radii import RISES, radii_of_rises
from analyses.running.estimating import Estimate, estimate
from analyses.running.executors import quieten
from analyses.running.preparing import prepare
from analyses.study import Cell, Study, StudyError, StudyFolder, parse_study
from analyses.study.base import near
from analyses.study.data_settings import DataKind, DataTask
from analyses.tasks.own_data import OwnData
from analyses.tasks.tables import Table, columns, read_table
from analyses.training.runs import read_run, train_cell

_NO_BLOCKS = ("lm_head", "pooler")
"""Parts outside the blocks that are no head of their own."""

_SHORT_RUN = 30
_MOST_EXAMPLES, _LEAST_STEPS = 128, 120


@dataclass(frozen=True)
class Draft:
    """Text of a study, and what it will take."""

    text: str
    estimate: Estimate


def draft(
    model: str,
    data: str,
    *,
    kind: DataKind | None = None,
    inputs: str | None = None,
    label: str | None = None,
    jobs: int = 2,
) -> Draft:
    """A study of the bundled methods on the user's model and data, that runs as it stands.

    A short LoRA run shows at which radii the training loss rises by `RISES`; one pass of each kind is timed.

    Args:
        model: Folder of a Hugging Face model, or its name on the hub.
        data: A file or folder; see `analyses.study.data_settings.DataTask`.
        kind: Of task; None to tell from the columns.
        inputs: Column of the input; None to tell.
        label: Column of the label; None to tell.
        jobs: Workers for the estimate.

    Raises:
        StudyError: Model or data cannot be read, or kind and columns cannot be told.
    """
    quieten()
    place = str(Path(data).resolve())
    table = read_table(data, "--data")
    settings = task_of(_local(model), place, table, kind, inputs, label)
    settings = _with_room_for_classes(settings, table)
    taken = [settings.test_size, settings.validation_size]
    train_size = min(_MOST_EXAMPLES, _pool(len(table[settings.inputs[0]]), *taken))
    try:
        network = OwnData(settings, train_size).new_model(settings.head_seed)
    except StudyError as error:
        raise StudyError(as_options(str(error), model="--model")) from error
    heads = _heads(network) if settings.name not in ("causal_lm", "seq2seq") else []
    targets = _targets(network, heads)
    smallest = min(min(layer.weight.shape) for layer in _linear(network, targets))
    batch_size = min(16, train_size)
    epochs = max(1, math.ceil(_LEAST_STEPS / math.ceil(train_size / batch_size)))
    values: dict[str, Any] = {
        "name": _name(place),
        "task": settings.model_dump(exclude_defaults=True, exclude_none=True),
        "train_size": train_size,
        "batch_size": batch_size,
        "epochs": epochs,
        "rank": max(1, min(8, smallest // 4)),
        "targets": targets,
        "heads": heads,
        "learning_rate": 1e-3,
        "rho": 0.1,
        "radii": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        values["radii"] = radii = _radii(parse_study(_text(values), source="draft"), Path(temporary))
        values["rho"] = radii.get(RISES[1]) or max(radii.values())
        study = parse_study(_text(values), source="draft")
        expected = estimate(study, StudyFolder(Path(temporary)), jobs=jobs)
    return Draft(_text(values), expected)


def _text(values: dict[str, Any]) -> str:
    template = Template((resources.files("analyses") / "templates" / "study.yaml.jinja").read_text())
    task = yaml.safe_dump(values["task"], sort_keys=False, allow_unicode=True)
    dumped = {key: yaml.safe_dump(values[key], default_flow_style=True).strip() for key in ("targets", "heads")}
    indented = "\n".join(f"  {line}" for line in task.splitlines())
    unit = "squared units of the label" if values["task"]["name"] == "regression" else "nats"
    return template.render(**values | dumped | {"task": indented, "loss_unit": unit})


def _local(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _name(place: str) -> str:
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in Path(place).stem).strip("-")
    return f"{kept or 'own'}-study"


def task_of(
    model: str, data: str, table: Table, kind: DataKind | None, inputs: str | None, label: str | None
) -> DataTask:
    """Settings of the task that a table's columns suggest.

    Raises:
        StudyError: Kind or columns cannot be told from it.
    """
    names = columns(table)
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise StudyError(
            f"--data: {data} has one column, {names[0]!r}; expected commas between columns, or tabs in a .tsv"
        )
    found = kind or _kind(table, label)
    plain = DataTask(name=found, model=model, data=data, input=inputs, label=label)
    texts = [name for name in names if isinstance(table[name][0], str)]
    if plain.inputs[0] not in names and inputs is None:
        others = [name for name in texts if name != plain.target]
        if found not in ("text_classification", "regression", "causal_lm", "seq2seq") or len(others) != 1:
            raise StudyError(f"--input: the columns of {data} are {', '.join(names)}; say which holds the input")
        inputs = others[0]
    for option, given in (("--input", inputs), ("--label", label)):
        if given is not None and given not in names:
            meant = near(given, names) or ";"
            raise StudyError(f"{option}: {data} has no column {given!r}{meant} it has {', '.join(names)}")
    if plain.target is not None and plain.target not in names and label is None:
        raise StudyError(f"--label: the columns of {data} are {', '.join(names)}; say which holds the label")
    return DataTask(name=found, model=model, data=data, input=inputs, label=label)


def _kind(table: Table, label: str | None) -> DataKind:
    names = columns(table)
    if "image" in names:
        return "image_classification"
    if "tokens" in names:
        return "token_classification"
    if label is None and "target" in names:
        return "seq2seq"
    label = label or ("label" if "label" in names else None)
    if label is None:
        if "text" in names and len(names) == 1:
            return "causal_lm"
        raise StudyError(f"--label: the columns are {', '.join(names)}; say which holds the label, or give --task")
    if label not in names:
        raise StudyError(f"--label: there is no column {label!r}; the columns are {', '.join(names)}")
    numbers = [value for value in table[label] if isinstance(value, float)]
    return (
        "regression"
        if any(value != int(value) for value in numbers if math.isfinite(value))
        else ("text_classification")
    )


def _with_room_for_classes(settings: DataTask, table: Table) -> DataTask:
    """Larger test and validation splits where the usual ones are too small for an example of every class."""
    if settings.name not in ("text_classification", "image_classification") or settings.target is None:
        return settings
    total, classes = len(table[settings.target]), len({str(label) for label in table[settings.target]})
    usual = {"test_size": total // 5, "validation_size": total // 10}
    if 4 * classes > total:  # too few for every split in any case; the refusal says what is missing
        return settings
    return settings.model_copy(update={name: classes for name, size in usual.items() if size < classes})


def _pool(total: int, test: int | None = None, validation: int | None = None) -> int:
    """Training examples that the draft's other splits leave, seven tenths where these have no size of their own."""
    return max(2, total - (test or total // 5) - (validation or max(1, total // 10)))


_OPTIONS = {
    "task.data.train": "--data",
    "task.data.validation": "--test",
    "task.data.test": "--test",
    "task.data": "--data",
    "task.input": "--input",
    "task.label": "--label",
    "task.name": "--task",
}


def as_options(message: str, *, model: str, **others: str) -> str:
    """A message on a study's keys, with the command line's options in their place.

    Args:
        message: Of a refusal.
        model: The option that names the model.
        **others: Options of the command's own, by key.
    """
    for key, option in {**_OPTIONS, "task.model": model, **others}.items():
        message = message.replace(f"{key}:", f"{option}:").replace(f" {key},", f" {option},")
    return message


def _heads(model: PreTrainedModel) -> list[str]:
    """Parts beside the pretrained body, which have weights of their own."""
    parts = model.named_children()
    return [name for name, part in parts if name != model.base_model_prefix and any(True for _ in part.parameters())]


def _targets(model: nn.Module, heads: list[str]) -> list[str]:
    """Endings of the linear layers that occur in every block; all but the heads' where there are no blocks."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)]
    inside = [name for name in names if not any(part in (*heads, *_NO_BLOCKS) for part in name.split("."))]
    counts = Counter(name.rsplit(".", 1)[-1] for name in inside)
    repeated = [ending for ending, count in counts.items() if count > 1]
    found = repeated or list(counts)
    if not found:
        raise StudyError("--model: it has no linear layers outside its head to adapt")
    others = [name for name in names if name not in inside and not any(part in heads for part in name.split("."))]
    return sorted(ending for short in found for ending in _apart(short, inside, others))


def _apart(ending: str, inside: list[str], others: list[str]) -> set[str]:
    """Endings of the blocks' layers with this one, long enough to match no layer outside the blocks."""
    mine = [name for name in inside if _ends(name, ending)]
    for parts in range(1, max(name.count(".") for name in mine) + 2):
        longer = {".".join(name.split(".")[-parts:]) for name in mine}
        if not any(_ends(name, one) for one in longer for name in others):
            return longer
    return {ending}


def _ends(name: str, ending: str) -> bool:
    """As PEFT matches ``target_modules``."""
    return name == ending or name.endswith(f".{ending}")


def _linear(model: nn.Module, endings: list[str]) -> Iterator[Any]:
    for name, layer in model.named_modules():
        if any(_ends(name, ending) for ending in endings) and isinstance(layer, nn.Linear | Conv1D):
            yield layer


def _radii(study: Study, root: Path) -> dict[float, float]:
    """Radius by rise after a short LoRA run."""
    short = study.model_copy(update={"training": study.training.model_copy(update={"max_steps": _SHORT_RUN})})
    folder, cell = StudyFolder(root / "short"), next(iter(study.cells()))
    cell = Cell("lora", cell.seed, cell.train_size)
    prepare(short, folder)
    train_cell(short, cell, folder, lambda step, total: None)
    if reason := read_run(folder.run(short, cell))["diverged"]:
        raise StudyError(f"--model: a short LoRA run diverged: {reason}; is the model in order?")
    return radii_of_rises(load_subject(short, cell, folder).risk())
