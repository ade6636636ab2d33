"""How long does a loss surface take, against the PyPI package loss-landscapes 3.0.6?

Both evaluate a plane of two filter-normalised directions on the same briefly trained vision transformer (4 layers, 64
wide, patch 2) and scikit-learn's digits, in one process and on one thread. Rounds are interleaved, and times are their
medians. The grids have the same number of points but not the same points: loss-landscapes inverts its distance and
shifts alternate rows by a cell, so only its time is comparable.

With few examples the calls set the pace, and evaluating many points at once removes most of them. With 100, the ratio
that is written, arithmetic sets it: loss-landscapes takes little more than the bare forward passes, about half of that
is matrix products, and those are needed at every point. So the goal is the floor: as many forward passes of the bare
model as there are points, without gradients, in batches of the size at which an example takes least.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.running.executors import quieten
from analyses.study.task_settings import DigitsTask
from analyses.tasks.digits import Digits
from landscape import EmpiricalRisk, loss_surface, random_direction

Examples = dict[str, Tensor]

HEADLINE = 100
ROUNDS = 3
FLOOR_BATCHES = (10, 25, 50, 100, 200, 400)


class Logits(nn.Module):
    """The model as loss-landscapes wants it: a tensor in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).logits


def trained_model(task: Digits, attention: str) -> nn.Module:
    """A few steps of Adam, after which no bias is zero: loss-landscapes divides by the norm of each."""
    model, data = task.new_model(0), task.examples("pretrain")
    model.set_attn_implementation(attention)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(pixel_values=data["pixel_values"][:100]).logits, data["labels"][:100]).backward()
        optimizer.step()
    return model.eval()


def ours(model: nn.Module, data: Examples, size: int) -> Callable[[], None]:
    def run() -> None:
        risk = EmpiricalRisk(model, [data])
        axis = torch.linspace(-1, 1, size, dtype=torch.float64)
        loss_surface(risk, random_direction(risk, seed=0), random_direction(risk, seed=1), axis, axis)

    return run


def theirs(model: nn.Module, data: Examples, size: int) -> Callable[[], None]:
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    def run() -> None:
        walked = Logits(copy.deepcopy(model))
        metric = Loss(F.cross_entropy, data["pixel_values"], data["labels"])
        loss_landscapes.random_plane(walked, metric, distance=1, steps=size, normalization="filter")

    return run


def floor(model: nn.Module, data: Examples, size: int) -> Callable[[], None]:
    """The forward passes alone, over as many examples as the surface evaluates, at the best batch."""
    pixels, count = data["pixel_values"], size**2 * len(data["labels"])

    def forward(batch: int, examples: int) -> None:
        inputs = pixels[torch.arange(batch) % len(pixels)]
        with torch.inference_mode():
            for begin in range(0, examples, batch):
                model(pixel_values=inputs[: examples - begin])

    def an_example(batch: int) -> float:
        forward(batch, batch)
        return min(seconds(lambda: forward(batch, 2 * max(FLOOR_BATCHES))) for _ in range(3))

    best = min(FLOOR_BATCHES, key=an_example)
    return lambda: forward(best, count)


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(task: Digits, attention: str, examples: int, size: int) -> dict[str, Any]:
    """Median seconds of both on one model and data set."""
    model = trained_model(task, attention)
    data = {key: value[:examples] for key, value in task.examples("train").items()}
    runs = {
        "landscape": ours(model, data, size),
        "loss_landscapes": theirs(model, data, size),
        "floor": floor(model, data, size),
    }
    for warm_up in (ours(model, data, 3), theirs(model, data, 3)):
        warm_up()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(seconds(run))
    medians = {f"{name}_seconds": statistics.median(values) for name, values in times.items()}
    return {"attention": attention, "examples": examples, "points": size**2, "rounds": ROUNDS, **medians}


def environment() -> dict[str, Any]:
    packages = ("torch", "transformers", "loss-landscapes")
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a 7 × 7 grid instead of 25 × 25")
    parser.add_argument("--json", type=Path, help="where to write the table")
    options = parser.parse_args()
    try:
        import loss_landscapes  # noqa: F401
    except ImportError:
        parser.exit(2, "loss-landscapes is missing: run make benchmark-env\n")
    quieten()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # loss-landscapes draws from the global generator
    size = 7 if options.quick else 25
    task, rows = Digits(DigitsTask(), HEADLINE), []
    print("| attention | examples | points | landscape | loss-landscapes | ratio | forward passes | over these |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for attention, examples in (("sdpa", 1), ("sdpa", 10), ("eager", HEADLINE), ("sdpa", HEADLINE)):
        row = measure(task, attention, examples, size)
        row["ratio"] = row["loss_landscapes_seconds"] / row["landscape_seconds"]
        row["over_floor"] = row["landscape_seconds"] / row["floor_seconds"]
        rows.append(row)
        cells = f"{row['landscape_seconds']:.2f} s | {row['loss_landscapes_seconds']:.2f} s | {row['ratio']:.2f}"
        cells += f" | {row['floor_seconds']:.2f} s | {row['over_floor']:.2f}"
        print(f"| {attention} | {examples} | {row['points']} | {cells} |", flush=True)
    if options.json:
        ratios = {
            "surfaces.speedup_over_loss_landscapes": rows[-1]["ratio"],
            "surfaces.time_over_forward_floor": rows[-1]["over_floor"],
        }
        options.json.write_text(json.dumps({"environment": environment(), "rows": rows, "ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
