"""The adapters' factors along training, for the analysis of how their subspaces move."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bilora.adapters import AUXILIARY, PRIMARY, WRAPPED, adapter_factors

DTYPES = {"float32": torch.float32, "float16": torch.float16}


def factor_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all factors, keyed ``adapter/layer/A`` and ``adapter/layer/B``, layers as in the plain model."""
    return {
        f"{adapter}/{layer.removeprefix(WRAPPED)}/{factor}": getattr(pair, factor).detach().clone()
        for adapter in (PRIMARY, AUXILIARY)
        for layer, pair in adapter_factors(model, adapter).items()
        for factor in ("A", "B")
    }


class SnapshotCallback(TrainerCallback):
    """Save all factors before the first step, every ``every`` steps and after the last.

    Args:
        directory: Gets one ``step-000000.safetensors`` a snapshot; what lies there of other trainings is removed.
        every: Steps between snapshots.
        dtype: Precision of the stored factors.

    Raises:
        ValueError: ``every`` is below 1.
    """

    def __init__(self, directory: str | Path, *, every: int, dtype: Literal["float32", "float16"] = "float32") -> None:
        if every < 1:
            raise ValueError(f"every: expected at least 1 step, got {every}")
        self._directory, self._every, self._dtype = Path(directory), every, DTYPES[dtype]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        if state.is_world_process_zero:
            for path in self._directory.glob("step-*.safetensors"):  # of an earlier training
                if _step(path) > state.global_step or state.global_step == 0:
                    path.unlink()
        self._save(state, kw["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        ends = control.should_training_stop or state.global_step == state.max_steps
        if state.global_step % self._every == 0 or ends:
            self._save(state, kw["model"])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        if not self._path_of(state.global_step).exists():  # a callback behind this one ended the training
            self._save(state, kw["model"])

    def _path_of(self, step: int) -> Path:
        return self._directory / f"step-{step:06d}.safetensors"

    def _save(self, state: TrainerState, model: nn.Module) -> None:
        tensors = {name: factor.to(self._dtype) for name, factor in factor_tensors(model).items()}
        if tensors and state.is_world_process_zero:
            self._directory.mkdir(parents=True, exist_ok=True)
            target = self._path_of(state.global_step)
            partial = target.with_suffix(".partial")
            save_file(tensors, partial)
            partial.replace(target)


def load_snapshots(directory: str | Path) -> dict[int, dict[str, Tensor]]:
    """Stored snapshots by step, ascending; float32.

    Raises:
        FileNotFoundError: The directory holds none.
    """
    files = sorted(Path(directory).glob("step-*.safetensors"))
    if not files:
        raise FileNotFoundError(f"directory: no step-*.safetensors in {directory}")
    return {_step(path): {name: factor.float() for name, factor in load_file(path).items()} for path in files}


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
