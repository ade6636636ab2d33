"""Runs: training one cell into a folder, and loading the minimum from it."""

from __future__ import annotations

import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from analyses.records import read_json, write_json
from analyses.records.files import new_folder
from analyses.study import Cell, Study, StudyFolder
from analyses.tasks import build_task
from analyses.training.devices import take_device
from bilora import METHODS, BiLoraConfig, BiLoraTrainer, Minimum, SnapshotCallback, minimum
from bilora.adapters import PRIMARY
from bilora.attaching import target_layers
from bilora.recorder import DynamicsRecorder
from bilora.snapshots import factor_tensors

Progress = Callable[[int, int], None]
SNAPSHOTS = "snapshots"
"""Folder of a run's snapshots."""


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
    own = settings.model_dump(exclude={"learning_rate", "method", "r"}, exclude_none=True)
    asked = settings.model_dump(exclude={"learning_rate", "method", "r"}, exclude_defaults=True)
    uses = METHODS[name].uses
    used = {key: value for key, value in (shared | own).items() if key in uses}
    # What is asked for beyond that is for the method to refuse.
    return BiLoraConfig(method=name, **(asked | used))


def train_cell(study: Study, cell: Cell, folder: StudyFolder, progress: Progress) -> None:
    """Train one cell and leave its run folder; nothing is left when training fails."""
    task = build_task(study.task, cell.train_size)
    base = task.load_base(folder.base(study))
    with new_folder(folder.run(study, cell)) as directory, torch.random.fork_rng(devices=[]):
        arguments = TrainingArguments(
            output_dir=str(directory / "trainer"),
            num_train_epochs=study.training.epochs,
            max_steps=study.training.max_steps or -1,
            per_device_train_batch_size=study.training.batch_size,
            learning_rate=study.methods[cell.method].learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=study.training.warmup_ratio,
            weight_decay=0.0,
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
        clock = _StepClock(progress)
        trainer = BiLoraTrainer(
            base,
            arguments,
            bilora=method_config(study, cell.method),
            train_dataset=task.dataset("train"),
            data_collator=task.collate,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        recorder = _follow(study, cell, trainer, directory)
        trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        trainer.save_model(str(directory / PRIMARY if isinstance(trainer.model, PeftModel) else directory))
        factors = factor_tensors(trainer.method.model)
        if factors:
            save_file(factors, directory / "factors.safetensors")
        write_json(
            directory / "run.json",
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
                "history": {"loss": trainer.step_losses, "dynamics": recorder.rows if recorder else []},
                "environment": environment(),
            },
        )


def _follow(study: Study, cell: Cell, trainer: BiLoraTrainer, directory: Path) -> DynamicsRecorder | None:
    """Keep snapshots and notes along training, if the study asks for them."""
    settings = study.measures.dynamics
    if settings is None:
        return None
    num_steps = study.training.num_steps(cell.train_size)
    recorder = DynamicsRecorder(trainer.method, every=max(1, num_steps // settings.notes))
    trainer.add_callback(recorder)
    every = max(1, num_steps // settings.snapshots)
    trainer.add_callback(SnapshotCallback(directory / SNAPSHOTS, every=every, dtype="float16"))
    return recorder


def load_minimum(study: Study, cell: Cell, folder: StudyFolder) -> Minimum:
    """Load a run's merged model; the measured space is that of the adapted layers, with adapters or without."""
    directory = folder.run(study, cell)
    task = build_task(study.task, cell.train_size)
    base = task.load_base(folder.base(study))
    targets, saved = study.adapters.target_modules, study.adapters.modules_to_save
    names = [f"{name}.weight" for name in target_layers(base, targets, saved)]
    if not (directory / PRIMARY).is_dir():
        whole = minimum(task.load_base(directory), base=base)
        return Minimum(whole.model, tuple(names), {name: whole.updates[name] for name in names}, {})
    found = minimum(directory, base=base)
    stored = load_file(directory / "factors.safetensors")
    factors: dict[str, dict[str, tuple[Tensor, Tensor]]] = defaultdict(dict)
    for key in stored:
        adapter, layer, factor = key.split("/")
        if factor == "A":
            factors[adapter][f"{layer}.weight"] = stored[key], stored[f"{adapter}/{layer}/B"]
    return replace(found, factors=dict(factors))


def read_run(directory: Path) -> dict[str, Any]:
    """The description that a run folder carries."""
    content: dict[str, Any] = read_json(directory / "run.json")
    return content


def environment() -> dict[str, str]:
    """Versions, commit and processor: what it takes to repeat a number."""
    packages = ("torch", "transformers", "peft", "numpy", "scipy", "pandas", "scikit-learn", "pyhessian")
    return {
        "bilora-landscape": version("bilora-landscape"),
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "uncommitted changes": {"": "no"}.get(_git("status", "--porcelain") or "", "yes"),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def _git(*command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
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
        return sorted(self._seconds)[len(self._seconds) // 2]

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._seconds.append(time.perf_counter() - self._started)
        self._progress(state.global_step, state.max_steps)
