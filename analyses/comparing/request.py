"""A comparison from the command line: which minima, on which examples."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from analyses.comparing.comparison import check_folder, compare_minima
from analyses.comparing.data import (
    Examples,
    FileData,
    examples_from_function,
    examples_of_study,
    imported,
)
from analyses.comparing.minima import gather_minima
from analyses.comparing.result import Comparison
from analyses.comparing.settings import WHAT, ComparisonSettings, comparison_settings
from analyses.comparing.sources import Reader, named_places, run_of
from analyses.running.executors import quieten
from analyses.study import StudyError, load_preset, load_study
from analyses.study.data_settings import DATA_KINDS
from analyses.study.measure_settings import BallName
from analyses.study.reading import read_yaml
from analyses.training.devices import check_device
from analyses.training.runs import RUN, read_run

_SMALL = 1_000_000
"""Weights below which one thread is faster than two."""


def add_compare_arguments(parser: ArgumentParser) -> None:
    """Arguments of ``landscape compare``."""
    parser.add_argument(
        "minima",
        type=str,
        nargs="+",
        metavar="MINIMUM",
        help="a run folder, a Hugging Face folder, BASE+ADAPTER, or a state dictionary; NAME=PLACE names it",
    )
    parser.add_argument("--data", type=str, help="file or folder of examples, or module:function that returns batches")
    parser.add_argument("--test", type=str, help="the same for test examples")
    parser.add_argument("--preset", type=str, help="take the examples of a bundled study's task")
    parser.add_argument("--config", type=Path, help="take the examples of a study of your own")
    parser.add_argument("--task", type=str, choices=DATA_KINDS, help="kind of task (default: told from the data)")
    parser.add_argument("--input", type=str, help="column of the input")
    parser.add_argument("--label", type=str, help="column of the label")
    parser.add_argument("--examples", type=int, help="examples to measure on (default: all, at most 256)")
    parser.add_argument("--tokenizer", type=str, help="model folder whose tokens and classes the data get")
    parser.add_argument("--model", type=str, help="module:function that makes the network of a state dictionary")
    parser.add_argument(
        "--weights-only",
        "--weights_only",
        action="store_true",
        help="read pickled checkpoints by PyTorch's restricted reader",
    )
    shapes = f"shapes of balls: some of {', '.join(get_args(BallName))}"
    measures = f"what to measure (default: all): some of {', '.join(WHAT)}"
    parser.add_argument("--radii", type=str, nargs="+", help="of the l2 balls (default: from the minima)")
    parser.add_argument("--balls", type=str, nargs="+", help=shapes)
    parser.add_argument("--what", type=str, nargs="+", help=measures)
    parser.add_argument("--params", type=str, help="regular expression for the names of the measured weights")
    parser.add_argument("--settings", type=Path, help="YAML file of further settings; see docs/compare.md")
    parser.add_argument("--out", type=Path, help="folder for records, figures, tables and the page")


def compare_places(options: Namespace) -> Comparison:
    """Compare what the command line names.

    Raises:
        StudyError: An option is wrong or missing, or the minima cannot be compared.
    """
    settings = _settings(options)
    check_device(settings.device)
    if options.out is not None:
        check_folder(options.out)
    places, notes = _without_diverged(named_places(options.minima))
    data = _file_data(options)
    if data is None:
        _refuse_options_of_files(options)
    if options.model and ":" not in options.model:
        raise StudyError(f"--model: expected 'module:function', got {options.model!r}")
    factory = partial(_made, options.model) if options.model else None
    reader = Reader(factory, data.base if data else None, options.weights_only)
    quieten()
    minima = gather_minima(places, settings.params, reader)
    examples = _examples(options, list(places.values()), data)
    if sum(weight.numel() for weight in minima.first.model.parameters()) > _SMALL:
        torch.set_num_threads(os.cpu_count() or 1)
    with tqdm(desc="compare", unit="measurement", dynamic_ncols=True) as bar:

        def stage(text: str) -> None:
            bar.set_description(text)
            bar.update()

        return compare_minima(minima, examples, settings, options.out, stage=stage, notes=notes)


def _without_diverged(places: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The places without those of runs that diverged, and a sentence on each of these."""
    found, notes = {}, []
    for name, place in places.items():
        reason = read_run(Path(place))["diverged"] if (Path(place) / RUN).is_file() else None
        if reason:
            notes.append(f"{name} diverged ({reason}): there is no minimum to measure.")
        else:
            found[name] = place
    if not found:
        raise StudyError(f"MINIMUM: none is left: {' '.join(notes)}")
    return found, notes


def _refuse_options_of_files(options: Namespace) -> None:
    """Refuse what describes a file of examples where they come from elsewhere."""
    given = next((f"the study that --{name} names" for name in ("preset", "config") if options[name]), "the run")
    says = f"the function {options.data}" if options.data else given
    for name in ("test", "task", "input", "label", "examples", "tokenizer"):
        if options[name] is not None:
            raise StudyError(f"--{name}: belongs to --data with a file; {says} says which examples")


def _examples(options: Namespace, places: Sequence[str], data: FileData | None) -> Examples:
    given = [f"--{name}" for name in ("data", "preset", "config") if options[name] is not None]
    if len(given) > 1:
        raise StudyError(f"{', '.join(given)}: give one of them: each names the examples")
    if data is not None:
        return data.examples(options.tokenizer or _model_among(places))
    if options.data:
        return examples_from_function(options.data)
    if options.preset or options.config:
        return examples_of_study(load_preset(options.preset) if options.preset else load_study(options.config))
    return _examples_of_runs(places)


def _examples_of_runs(places: Sequence[str]) -> Examples:
    """The training and test examples that all runs share."""
    others = [place for place in places if not (Path(place) / RUN).is_file()]
    if others:
        raise StudyError(
            f"--data: {others[0]} is no run folder, so that its examples are unknown; give --data FILE, --data "
            "module:function, --preset NAME or --config STUDY"
        )
    runs = [run_of(Path(place)) for place in places]
    tasks = {(json.dumps(study.task.model_dump(mode="json")), cell.train_size) for study, cell, _ in runs}
    if len(tasks) > 1:
        raise StudyError("--data: the runs have different tasks or training sets; give --preset NAME or --config STUDY")
    study, cell, _ = runs[0]
    if study.resample:
        raise StudyError("--data: the runs' study draws a training set by seed; give --data module:function")
    return examples_of_study(study, cell.train_size)


def _file_data(options: Namespace) -> FileData | None:
    if options.data is None or (":" in options.data and not Path(options.data).exists()):
        return None
    return FileData(options.data, options.test, options.task, options.input, options.label, options.examples)


def _model_among(places: Sequence[str]) -> str:
    """The first folder of a Hugging Face model that the places name."""
    for place in places:
        base = place.rpartition("+")[0] if "+" in place and not Path(place).exists() else place
        if (adapter := Path(base) / "adapter_config.json").is_file():
            base = json.loads(adapter.read_text()).get("base_model_name_or_path") or base
        if (Path(base) / "config.json").is_file():
            return base
    raise StudyError(
        "--tokenizer: none of the minima is a Hugging Face model that could read the file; name one, or give --data "
        "module:function"
    )


def _settings(options: Namespace) -> ComparisonSettings:
    given: dict[str, Any] = {}
    if options.settings is not None:
        try:
            given = read_yaml(options.settings.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise StudyError(f"--settings: cannot read {options.settings}: {reason}") from error
        if not isinstance(given, dict):
            raise StudyError(f"--settings: expected keys and values, got a {type(given).__name__}")
    for name in ("radii", "balls", "what"):
        if options[name] is not None:
            given[name] = [one for part in options[name] for one in part.split(",") if one]  # spaces or commas
    flags = ("params", "device")
    return comparison_settings(given | {name: options[name] for name in flags if options[name] is not None})


def _made(place: str) -> Any:
    return imported(place, "--model")()
