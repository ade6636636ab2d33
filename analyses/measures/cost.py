"""What a step costs: interleaved timings in one process, bytes allocated, passes counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from analyses.measures.method_step import MethodStep
from analyses.records import records_frame, write_records
from analyses.study import Study, StudyFolder
from analyses.tasks import build_task
from analyses.training.devices import take_device
from analyses.training.runs import environment, method_config
from bilora import build_method

Progress = Callable[[int, int], None]
STEPS_PER_ROUND = 10


def measure_cost(study: Study, folder: StudyFolder, progress: Progress) -> None:
    """Time every method's step in interleaved rounds and write the records.

    A round times a few steps of each method in turn and keeps their median, so that what disturbs the machine
    disturbs all methods alike; the rounds are the repetitions. Steps are the methods' own updates with AdamW,
    without a training loop around them. Memory is the largest amount allocated at one time during a step, on
    top of the parameters, gradients and optimizer state, plus these.
    """
    task = build_task(study.task, study.train_sizes[0])
    device = take_device(study.device)
    batch = {k: v.to(device) for k, v in task.collate(task.dataset("train")[: study.training.batch_size]).items()}
    steps = {
        name: MethodStep(
            build_method(task.load_base(folder.base(study)).to(device), method_config(study, name), seed=0),
            batch,
            lr=study.methods[name].learning_rate,
        )
        for name in study.methods
    }
    fixed = {"study": study.name, "train_size": study.train_sizes[0]}
    rows: list[dict[str, Any]] = []
    for name, step in steps.items():
        constants = {
            "gradient_passes": step.passes(),
            "step_flops": step.flops(),
            "peak_memory_bytes": step.peak_bytes(),
        }
        for measure, value in constants.items():
            rows.append(fixed | {"method": name, "seed": 0, "measure": measure, "value": value})
    rounds = study.measures.cost_rounds
    for number in range(rounds):
        for name, step in steps.items():
            seconds = step.median_seconds(STEPS_PER_ROUND)
            rows.append(fixed | {"method": name, "seed": number, "measure": "step_seconds", "value": seconds})
        progress(number + 1, rounds)
    write_records(records_frame(rows), folder.cost(study), environment())
