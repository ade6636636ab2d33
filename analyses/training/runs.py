"""Runs: training one cell into a folder, and loading the minimum from it."""

from __future__ import annotations

import math
import platform
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import BaseModel, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from analyses.records import RecordsError, read_json, write_json
from analyses.records.files import new_folder
from analyses.study import Cell, Study, StudyError, StudyFolder
from analyses.study.base import problem_of
from analyses.study.settings import OVERRIDES, Schedule
from analyses.tasks import Task, build_task
from analyses.training.devices import take_device
from analyses.training.recording import Recording
from bilora import BiLoraConfig, BiLoraTrainer, Minimum, minimum
from bilora.adapters import PRIMARY
from bilora.attaching import target_layers
from bilora.methods import method_class
from bilora.snapshots import factor_tensors

Progress = Callable[[int, int], None]
_SCHEDULES: dict[Schedule, str] = {"linear": "linear", "constant": "constant_with_warmup", "cosine": "cosine"}
"""Names that the Trainer gives to schedules; each begins with the warm-up."""
RUN = "run.json"
"""What describes a run, in its folder."""


def method_config(study: Study, method: str) -> BiLoraConfig:
    """The trainer's settings for one method of a study: of those shared by all methods, the ones that it uses."""
    settings = study.methods[method]
    name = settings.method or method
    rank = settings.r or study.adapters.r
    shared = {
        "r": rank,
        "alpha": study.adapters.alpha * rank / study.adapters.r,
        "target_modules": study.adapters.target_modules,
        "modules_to_save": study.adapters.modules_to_save,
    }
    beside = {"learning_rate", "method", "r", *OVERRIDES}
    own = settings.model_dump(exclude=beside, exclude_none=True)
    asked = settings.model_dump(exclude=beside, exclude_defaults=True)
    uses = method_class(name).uses
    if settings.primary == "full":
        shared.pop("modules_to_save")
    if settings.primary == "ia3" and "auxiliary_r" not in uses:
        shared = {key: value for key, value in shared.items() if key not in ("r", "alpha")}  # it has neither
    used = {key: value for key, value in (shared | own).items() if key in uses}
    # What is asked for beyond that is for the method to refuse.
    return BiLoraConfig(method=name, **(asked | used))


def study_task(study: Study, cell: Cell) -> Task:
    """Data and model of a cell; a study that resamples draws the training set by the seed."""
    return build_task(study.task, cell.train_size, draw=cell.seed if study.resample else None)


def train_cell(study: Study, cell: Cell, folder: StudyFolder, progress: Progress, *, record: bool = False) -> None:
    """Train one cell and leave its run folder; nothing is left when training breaks.

    A training whose loss is no longer finite has diverged: that is its result, and the run folder says so.

    Args:
        study: The study.
        cell: What to train.
        folder: The study's folder.
        progress: Gets the steps done and the number of steps.
        record: Follow the training into `StudyFolder.recording` too; a run that is there already is trained again for
            it, to the same weights.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        directory = stack.enter_context(new_folder(folder.run(study, cell)))
        clock = _StepClock(progress)
        trainer = _trainer(study, cell, folder, directory / "trainer", clock)
        recording = None
        if record:
            recorded = stack.enter_context(new_folder(folder.recording(study, cell)))
            recording = Recording(study, cell, trainer, recorded)
        trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        started, diverged = time.perf_counter(), None
        try:
            trainer.train()
            final = trainer.evaluate(trainer.train_dataset)["eval_loss"]
            if not math.isfinite(final):
                diverged = f"the training loss of the deployed weights is {final}"
        except FloatingPointError as error:
            diverged = str(error)
        seconds = time.perf_counter() - started
        if diverged is None:
            _save(trainer, directory)
        if recording:
            recording.finish()
        write_json(
            directory / RUN,
            {
                "study": study.name,
                "method": cell.method,
                "seed": cell.seed,
                "train_size": cell.train_size,
                "settings": study.model_dump(mode="json"),
                "base": str(Path("..") / ".." / "base" / study.base_name()),
                "trainable_parameters": trainable,
                "passes_per_step": trainer.method.passes_per_step,
                "seconds": seconds,
                "step_seconds": clock.median,
                "diverged": diverged,
                "history": {"loss": trainer.step_losses},
                "environment": environment(),
            },
        )


def _trainer(study: Study, cell: Cell, folder: StudyFolder, output: Path, clock: _StepClock) -> BiLoraTrainer:
    task, training = study_task(study, cell), study.training_of(cell.method)
    rate = study.methods[cell.method].learning_rate
    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.batch_size,
        learning_rate=rate,
        lr_scheduler_type=_SCHEDULES[training.schedule or "linear"],
        warmup_steps=training.warmup_ratio,
        weight_decay=training.weight_decay or 0.0,
        max_grad_norm=0.0,
        optim="adamw_torch_fused",
        seed=cell.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=take_device(study.device).type == "cpu",
        remove_unused_columns=False,
    )
    update = training.optimizer
    trainer = BiLoraTrainer(
        task.load_base(folder.base(study)),
        arguments,
        bilora=method_config(study, cell.method),
        train_dataset=task.dataset("train"),
        data_collator=task.collate,
        callbacks=[clock],
        optimizer_cls_and_kwargs=update and (update.load(), {"lr": rate, **update.options}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _save(trainer: BiLoraTrainer, directory: Path) -> None:
    """The deployed weights and all factors; the pickle that the Trainer puts beside them goes."""
    has_adapter = isinstance(trainer.model, PeftModel) and PRIMARY in trainer.model.peft_config
    place = directory / PRIMARY if has_adapter else directory
    trainer.save_model(str(place))
    (place / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    factors = factor_tensors(trainer.method.model)
    if factors:
        save_file(factors, directory / "factors.safetensors")


def load_minimum(study: Study, cell: Cell, folder: StudyFolder) -> Minimum:
    """Load a run's merged model; the measured space is that of the adapted layers, with adapters or without."""
    directory = folder.run(study, cell)
    task = study_task(study, cell)
    base = task.load_base(folder.base(study))
    targets, saved = study.adapters.target_modules, study.adapters.modules_to_save
    names = [f"{name}.weight" for name in target_layers(base, targets, saved)]
    if (directory / PRIMARY).is_dir() or (directory / "adapter_config.json").is_file():
        found = minimum(directory, base=base)
    else:
        whole = minimum(task.load_base(directory), base=base)
        found = Minimum(whole.model, tuple(names), {name: whole.updates[name] for name in names}, {})
    adapters = directory / "factors.safetensors"
    stored = load_file(adapters) if adapters.is_file() else {}
    factors: dict[str, dict[str, tuple[Tensor, Tensor]]] = defaultdict(dict)
    for key in stored:
        adapter, layer, factor = key.split("/")
        if factor == "A":
            factors[adapter][f"{layer}.weight"] = stored[key], stored[f"{adapter}/{layer}/B"]
    return replace(found, factors=dict(factors))


def run_at(path: Path, **changes: Any) -> tuple[Study, Cell, StudyFolder]:
    """Study, cell and folder of a run folder; ``changes`` take the place of the study's own settings.

    Raises:
        StudyError: It is no run folder, describes another run, or its pretrained model is missing.
    """
    if not (path / RUN).is_file():
        raise StudyError(f"RUN: {path} is no run folder: it has no {RUN}")
    description = read_run(path)
    try:
        study = Study.model_validate(description["settings"] | changes)
    except ValidationError as error:
        raise StudyError(f"RUN: {path / RUN}: settings.{problem_of(error.errors()[0], Study)}") from None
    cell = Cell(description["method"], description["seed"], description["train_size"])
    folder = StudyFolder(path.resolve().parent.parent)
    if cell.method not in study.methods or folder.run(study, cell) != path.resolve():
        raise StudyError(f"RUN: {path / RUN} describes another run, {cell} of {study.name!r}; train it again")
    if not folder.base(study).exists():
        raise StudyError(f"RUN: the pretrained model of {path} is missing; expected it at {folder.base(study)}")
    return study, cell, folder


class _Description(BaseModel):
    """What every description of a run has; its settings may be of an older version."""

    method: str
    seed: int
    train_size: int
    settings: dict[str, Any]
    trainable_parameters: int
    step_seconds: float | None
    diverged: str | None
    environment: dict[str, str]


def read_run(directory: Path) -> dict[str, Any]:
    """The description that a run folder carries.

    Raises:
        RecordsError: It is none.
    """
    path = directory / RUN
    content: dict[str, Any] = read_json(path)
    try:
        _Description.model_validate(content)
    except ValidationError as error:
        raise RecordsError(f"{path}: no description of a run: {problem_of(error.errors()[0], _Description)}") from None
    return content


@cache
def environment() -> dict[str, str]:
    """Versions, commit and processor: what it takes to repeat a number."""
    packages = ("torch", "transformers", "peft", "numpy", "scipy", "pandas", "scikit-learn", "pyhessian")
    return {
        "bilora-landscape": version("bilora-landscape"),
        **_commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def _commit() -> dict[str, str]:
    """The toolkit's own commit; an installed package has none, and that of a repository around it is not its own."""
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": "none: an installed package", "uncommitted changes": "no"}
    changes = {"": "no"}.get(_git("status", "--porcelain") or "", "yes")
    return {"commit": _git("rev-parse", "HEAD") or "unknown", "uncommitted changes": changes}


def _git(*command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *command],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class _StepClock(TrainerCallback):
    """Times every step and passes on how many are done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seconds: list[float] = []
        self._started = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self._seconds) if self._seconds else math.nan

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._seconds.append(time.perf_counter() - self._started)
        self._progress(state.global_step, state.max_steps)
