"""What a step costs: interleaved timings in one process, bytes allocated, passes counted."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from analyses.records import records_frame, write_records
from analyses.runs import method_config
from analyses.study import Study, StudyFolder
from analyses.tasks.digits import Digits
from bilora import Method, build_method
from bilora.optimizers import method_optimizer

Progress = Callable[[int, int], None]
STEPS_PER_ROUND = 10


def measure_cost(study: Study, folder: StudyFolder, progress: Progress) -> None:
    """Time every method's step in interleaved rounds and write the records.

    A round times a few steps of each method in turn and keeps their median, so that what disturbs the machine
    disturbs all methods alike; the rounds are the repetitions. Steps are the methods' own updates with AdamW,
    without a training loop around them. Memory is the largest amount allocated at one time during a step, on
    top of the parameters, gradients and optimizer state, plus these.
    """
    task = Digits(study.task, study.train_sizes[0])
    batch = {key: value[: study.training.batch_size] for key, value in task.examples("train").items()}
    steppers = {name: _Stepper.build(task.load_base(folder.base(study)), study, name, batch) for name in study.methods}
    fixed = {"study": study.name, "train_size": study.train_sizes[0]}
    rows: list[dict[str, Any]] = []
    for name, stepper in steppers.items():
        for _ in range(3):
            stepper.step()
        stepper.num_passes = 0
        stepper.step()
        constants = {"gradient_passes": stepper.num_passes, "peak_memory_bytes": stepper.peak_bytes()}
        for measure, value in constants.items():
            rows.append(fixed | {"method": name, "seed": 0, "measure": measure, "value": value})
    rounds = study.measures.cost_rounds
    for number in range(rounds):
        for name, stepper in steppers.items():
            seconds = stepper.median_seconds()
            rows.append(fixed | {"method": name, "seed": number, "measure": "step_seconds", "value": seconds})
        progress(number + 1, rounds)
    write_records(records_frame(rows), folder.cost(study))


@dataclass
class _Stepper:
    """One method with an optimizer, on one fixed batch."""

    method: Method
    optimizer: torch.optim.Optimizer
    batch: dict[str, Tensor]
    num_passes: int = 0

    @classmethod
    def build(cls, base: nn.Module, study: Study, name: str, batch: dict[str, Tensor]) -> _Stepper:
        method = build_method(base, method_config(study, name), seed=0)
        method.model.train()
        optimizer = method_optimizer(
            method, torch.optim.AdamW, lr=study.methods[name].learning_rate, weight_decay=0.0, fused=True
        )
        return cls(method, optimizer, batch)

    def _backward(self) -> Tensor:
        self.num_passes += 1
        loss: Tensor = self.method.model(**self.batch).loss
        loss.backward()
        return loss.detach()

    def step(self) -> None:
        self.method.gradient(self._backward)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def median_seconds(self) -> float:
        times = []
        for _ in range(STEPS_PER_ROUND):
            began = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - began)
        return sorted(times)[len(times) // 2]

    def peak_bytes(self) -> int:
        """Parameters, optimizer state, and the most that one step allocates beside them."""
        tensors: list[Tensor] = list(self.method.model.parameters())
        tensors += [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        resident = sum(t.numel() * t.element_size() for t in tensors)
        with _silent_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.step()
        current = peak = 0
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda e: e.start_ns()):
            current += event.nbytes()
            peak = max(peak, current)
        return resident + peak


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep the profiler's own trace lines, which no option turns off, out of the terminal."""
    sys.stderr.flush()
    saved = os.dup(2)
    with Path(os.devnull).open("w") as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
