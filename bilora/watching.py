"""Curvature and sharpness of the deployed weights while they train."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bilora.minima import minimum
from landscape import (
    EmpiricalRisk,
    HessianOperator,
    SpectralDensity,
    estimate_trace,
    lanczos,
    spectral_density,
    worst_case_sharpness,
)
from landscape.batches import read_batches
from landscape.losses import Batch, PerExampleLoss
from landscape.params import ParameterFilter

What = Literal["top_eigenvalue", "trace", "sharpness"]
_FILE = "curvature.csv"


class CurvatureCallback(TrainerCallback):
    """Measure the deployed weights' curvature before the first step, every ``every`` steps and after the last.

    For any `transformers.Trainer`, and as a plain object for any loop: ``watch.measure(model, step)``. Adapters are
    merged in a copy, the auxiliary left out; other models are measured where they are. Training stays the same to the
    bit: nothing is written to the model, and no global random number is drawn. Eigenvector and worst case of a step are
    starts of the next, so that a slowly moving minimum costs a few passes; a trace costs up to 60 products, a worst
    case about 50 passes over ``batches``. What a step cost stands in its row.

    In a trainer's ``callbacks`` it writes the file and the trainer's log history; `attach` adds the trainer's loggers.
    In a distributed run the first process measures alone, on all of ``batches``.

    Args:
        batches: Examples whose mean loss is measured, as of `landscape.EmpiricalRisk`; a fixed sample of some hundreds.
        every: Steps between measurements.
        measures: ``top_eigenvalue`` (largest algebraic, of the Hessian), ``trace``, ``sharpness`` (worst-case rise, a
            lower bound by two short searches).
        rho: Radius for ``sharpness``, in the weights' units.
        per_layer: The top eigenvalue of each matrix's own block, too.
        density: Keep the spectral density of each step in `densities`, too.
        loss: Of single examples; see `landscape.EmpiricalRisk`.
        params: Weights measured; default the adapted layers', or all that are trained.
        tol: Relative residual of eigenvalues; the trace's relative standard error is at most ten times that where 60
            products suffice.
        path: CSV file; default ``curvature.csv`` in the trainer's output folder, none in a loop of one's own.
        seed: Of the probes.

    Attributes:
        rows: One dictionary a measured step: ``step``, ``loss``, the measures, each with what says how exact it is
            (``…_residual``, ``…_stderr``, ``…_gap``), ``num_passes`` over the data, a Hessian product counting as
            one, and ``seconds``.
        densities: By step.

    Raises:
        ValueError: An argument is out of range or unknown.

    >>> import torch
    >>> net = nn.Linear(2, 2)
    >>> watch = CurvatureCallback([(torch.eye(2), torch.tensor([0, 1]))], measures=["top_eigenvalue"])
    >>> sorted(watch.measure(net, step=3))
    ['loss', 'num_passes', 'seconds', 'step', 'top_eigenvalue', 'top_eigenvalue_residual']
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        *,
        every: int = 100,
        measures: Sequence[What] = ("top_eigenvalue", "trace", "sharpness"),
        rho: float = 0.05,
        per_layer: bool = False,
        density: bool = False,
        loss: PerExampleLoss | None = None,
        params: ParameterFilter | None = None,
        tol: float = 1e-2,
        path: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: expected at least 1 step, got {every}")
        if isinstance(measures, str) or set(measures) - set(get_args(What)):
            raise ValueError(f"measures: expected some of {', '.join(get_args(What))} in a list, got {measures!r}")
        if not rho > 0 or not tol > 0:
            raise ValueError(f"rho, tol: expected positive numbers, got {rho} and {tol}")
        self.batches = read_batches(batches)
        self.rows: list[dict[str, float]] = []
        self.densities: dict[int, SpectralDensity] = {}
        self._every, self._measures, self._rho, self._tol = every, tuple(measures), rho, tol
        self._per_layer, self._density, self._seed = per_layer, density, seed
        self._options: dict[str, Any] = {"loss": loss, "params": params}
        self._path = None if path is None else Path(path)
        self._log: Callable[[dict[str, float]], None] | None = None
        self._vectors: dict[str, Tensor] = {}
        self._worst: Tensor | None = None

    def attach(self, trainer: Trainer) -> CurvatureCallback:
        """Add it to a trainer, with all of the trainer's loggers."""
        trainer.add_callback(self)
        self._log = trainer.log
        return self

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Measure a model now; the row is kept and, with ``path``, written.

        Args:
            model: Plain, wrapped for data parallelism, or with adapters.
            step: What to call the moment.
        """
        began = time.perf_counter()
        risk = self._risk(model)
        row: dict[str, float] = {"step": step, "loss": risk.loss()}
        passes = 1.0
        operator = HessianOperator(risk)
        if "top_eigenvalue" in self._measures:
            passes += self._top_eigenvalue(operator, "", row)
        if "trace" in self._measures:
            trace = estimate_trace(operator, tol=10 * self._tol, max_matvecs=60, seed=self._seed)
            row |= {"trace": trace.trace, "trace_stderr": trace.stderr}
            passes += trace.num_matvecs
        if "sharpness" in self._measures:
            passes += self._sharpness(risk, row)
        if self._per_layer:
            matrices = [
                name for name, shape in zip(risk.layout.names, risk.layout.shapes, strict=True) if len(shape) > 1
            ]
            for name in matrices:
                passes += self._top_eigenvalue(HessianOperator(risk.select([name])), f"/{name}", row)
        if self._density:
            self.densities[step] = spectral_density(operator, num_steps=20, num_probes=2, seed=self._seed)
            passes += self.densities[step].num_matvecs
        row |= {"num_passes": passes, "seconds": time.perf_counter() - began}
        self.rows.append(row)
        self._write()
        return row

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Measure the model that training starts from."""
        self._path = self._path or Path(args.output_dir) / _FILE
        if state.global_step == 0:
            self._measure_in_training(state, kw["model"])
        elif not self.rows:  # the training is resumed
            self.rows = [row for row in _rows_of(self._path) if row["step"] <= state.global_step]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Measure every so many steps and after the last."""
        ends = control.should_training_stop or state.global_step == state.max_steps
        if state.global_step % self._every == 0 or ends:
            self._measure_in_training(state, kw["model"])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Measure after the last step where a callback behind this one ended the training."""
        if not self.rows or self.rows[-1]["step"] != state.global_step:
            self._measure_in_training(state, kw["model"])

    def _measure_in_training(self, state: TrainerState, model: nn.Module) -> None:
        if not state.is_world_process_zero:
            return
        row = self.measure(model, state.global_step)
        scalars = {f"curvature/{key}": value for key, value in row.items() if key != "step"}
        if self._log is not None:
            self._log(scalars)
        else:
            state.log_history.append(scalars | {"step": state.global_step})

    def _risk(self, model: nn.Module) -> EmpiricalRisk:
        model = model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else model
        options = self._options | {"group": None}
        if not isinstance(model, PeftModel):
            return EmpiricalRisk(model, self.batches, **options)
        merged = minimum(model)
        names = list(merged.weight_names) if options["params"] is None else options["params"]
        return EmpiricalRisk(merged.model, self.batches, **options | {"params": names})

    def _top_eigenvalue(self, operator: HessianOperator, suffix: str, row: dict[str, float]) -> int:
        start = self._vectors.get(suffix)
        found = lanczos(operator, 1, tol=self._tol, start=start, seed=self._seed)
        self._vectors[suffix] = found.eigenvectors
        row[f"top_eigenvalue{suffix}"] = float(found.eigenvalues[0])
        row[f"top_eigenvalue_residual{suffix}"] = float(found.residuals[0])
        return found.num_matvecs

    def _sharpness(self, risk: EmpiricalRisk, row: dict[str, float]) -> float:
        starts: Mapping[str, Tensor] = {} if self._worst is None else {"last": self._worst}
        found = worst_case_sharpness(
            risk, self._rho, steps=8, restarts=2, screened=16, max_passes=1, starts=starts, seed=self._seed
        )
        self._worst = found.epsilon
        row |= {"worst_case_rise": found.rise, "worst_case_gap": found.gap}
        return float(found.num_passes)

    def _write(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        partial_file = self._path.with_name(f".{self._path.name}.partial")
        with partial_file.open("w", newline="") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(self.rows)
        partial_file.replace(self._path)


def _rows_of(path: Path) -> list[dict[str, float]]:
    """What an earlier part of a training wrote."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [row | {"step": int(row["step"])} for row in rows]
