"""Before the cells: settings that fit the task, the folder for oneself, and the model from which all start."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO

from tqdm import tqdm
from transformers import PreTrainedModel

from analyses.measures.registry import measures_of
from analyses.records.files import new_folder, remove_leftovers
from analyses.study import Study, StudyError, StudyFolder
from analyses.tasks import build_task
from analyses.training.devices import check_device
from analyses.training.runs import method_config
from bilora import BiLoraConfig
from bilora.attaching import check_layers, target_layers
from bilora.config import WITHOUT_FACTORS
from bilora.methods import method_class
from bilora.optimizers import moves_matrices_alone


def check(study: Study) -> None:
    """Refuse settings that do not fit the task, before any work.

    Raises:
        StudyError: The split is impossible, no layer is adapted, the rank is too large, or a measure is unknown.
    """
    check_device(study.device)
    measures_of(study)
    for train_size in study.train_sizes:
        model = build_task(study.task, train_size, draw=0 if study.resample else None).new_model(0)
    try:
        names = target_layers(model, study.adapters.target_modules, study.adapters.modules_to_save)
    except ValueError as error:
        raise StudyError(f"adapters.{error}") from error
    if not names:
        linear = sorted({name.split(".")[-2] for name, p in model.named_parameters() if p.ndim == 2})
        raise StudyError(
            f"adapters.target_modules: {study.adapters.target_modules!r} matches no linear layer; "
            f"the model has {', '.join(linear)}"
        )
    adapters = study.adapters
    _check_layers(
        model, BiLoraConfig(r=1, target_modules=adapters.target_modules, modules_to_save=adapters.modules_to_save)
    )
    for column in study.methods:
        try:
            config = method_config(study, column)
            method_class(config.method).check(config)
        except ValueError as error:
            raise StudyError(f"methods.{column}: {error}") from error
        if (update := study.training_of(column).optimizer) and moves_matrices_alone(update.load()):
            whole = config.method in ("full", "sam") or config.primary == "full"
            saved = set(config.modules_to_save or ())
            trained = (p for name, p in model.named_parameters() if whole or saved & set(name.split(".")))
            if any(parameter.ndim != 2 for parameter in trained):
                raise StudyError(
                    f"methods.{column}: the optimizer Muon of torch moves matrices alone, and {column} trains vectors, "
                    "too; use pytorch_optimizer:Muon, which moves these by AdamW"
                )
        if config.target_modules is not None and config.primary != "lora_ga":  # prepared for when it is trained
            if config.primary in WITHOUT_FACTORS:
                rank = config.r if "auxiliary_r" in method_class(config.method).uses else 1
                config = config.model_copy(update={"primary": "lora", "r": rank})
            _check_layers(model, config)


def _check_layers(model: PreTrainedModel, config: BiLoraConfig) -> None:
    try:
        check_layers(model, config, rank_factor=2 if config.method == "lora_2r" else 1)
    except ValueError as error:
        raise StudyError(f"adapters.{error}") from error


@contextmanager
def exclusive(study: Study, folder: StudyFolder) -> Iterator[None]:
    """Hold the study's folder; a second process that wants it is refused, a dead one holds nothing.

    Nothing in a folder of somebody else's changes, nor in one where another process is at work. Only a new folder gets
    the settings here: those of a study that is there are for an audit to renew (`StudyFolder.keep`).

    Raises:
        StudyError: The folder is another study's, or another process works in it.
    """
    folder.refuse_others(study)
    with locked(folder):
        if not folder.settings.exists():
            folder.keep(study)
        yield


@contextmanager
def locked(folder: StudyFolder, argument: str = "--out") -> Iterator[None]:
    """Hold a folder against other processes without a look at what study it holds.

    Args:
        folder: To be held.
        argument: What names it, for errors.

    Raises:
        StudyError: Another process works in it, or its file system has no locks.
    """
    with _lock_file(folder, argument) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(f"{argument}: another process is at work in {folder.root}; wait for it") from None
        except OSError as error:
            raise StudyError(
                f"{argument}: cannot lock {folder.root}: {error.strerror}; expected a file system with locks "
                "(mount Lustre with -o flock)"
            ) from error
        yield


def _lock_file(folder: StudyFolder, argument: str) -> IO[str]:
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        return folder.lock.open("w")
    except OSError as error:
        reason = f"cannot write to {folder.root}: {error.strerror}; choose another folder"
        raise StudyError(f"{argument}: {reason}") from error


def refuse_changed_data(study: Study, folder: StudyFolder) -> None:
    """Refuse to go on with a study whose data are others than when it began.

    Raises:
        StudyError: They are.
    """
    refuse = getattr(build_task(study.task, study.train_sizes[0]), "refuse_changed", None)
    if refuse is not None and folder.base(study).exists():
        refuse(folder.base(study))


def prepare(study: Study, folder: StudyFolder) -> None:
    """Create the base model if it is not there."""
    remove_leftovers(folder.root)
    path = folder.base(study)
    if not path.exists():
        task = build_task(study.task, study.train_sizes[0])
        with tqdm(desc="base model", unit="step", dynamic_ncols=True) as bar, new_folder(path) as temporary:
            task.create_base(temporary, partial(show, bar))


def show(bar: tqdm, step: int, total: int) -> None:  # type: ignore[type-arg]
    """Move a bar to ``step`` of ``total``."""
    bar.total = total
    bar.update(step - bar.n)
