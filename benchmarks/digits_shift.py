"""Does pretraining help under the shift? Full fine-tuning against training from scratch, by rotation angle.

Prints the table that docs/digits.md keeps. Each entry is the best learning rate of three by mean test accuracy, for
both alike: an upper estimate, which favours training from scratch no less than fine-tuning.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from analyses.running.executors import quieten
from analyses.study.task_settings import DigitsTask
from analyses.tasks.digits import Digits, Examples, fit

LEARNING_RATES = (3e-4, 1e-3, 3e-3)


def accuracy(model: nn.Module, data: Examples) -> float:
    with torch.no_grad():
        predicted = model(pixel_values=data["pixel_values"]).logits.argmax(dim=1)
    return float((predicted == data["labels"]).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--angles", type=float, nargs="+", default=[15, 30, 45, 90])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        Digits(DigitsTask(), 100).create_base(Path(folder) / "base", lambda step, total: None)
        base = Digits(DigitsTask(), 100).load_base(Path(folder) / "base").eval()
    print("| angle | without fine-tuning | fine-tuned | from scratch |\n| --- | --- | --- | --- |")
    for angle in options.angles:
        task = Digits(DigitsTask(angle=angle), 100)
        train, test = task.examples("train"), task.examples("test")
        results: dict[str, list[np.ndarray]] = {"fine-tuned": [], "from scratch": []}
        for rate in LEARNING_RATES:
            scores = {name: [] for name in results}
            for seed in range(options.seeds):
                for name, start in (("fine-tuned", base), ("from scratch", task.new_model(seed))):
                    model = copy.deepcopy(start)
                    generator = torch.Generator().manual_seed(seed)
                    fit(model, train, 60, rate, 25, generator, lambda step, total: None)
                    scores[name].append(accuracy(model, test))
            for name, values in scores.items():
                results[name].append(np.array(values))
        best = {name: max(rows, key=np.mean) for name, rows in results.items()}
        cells = [f"{100 * v.mean():.1f} ± {100 * v.std(ddof=1):.1f}" for v in best.values()]
        print(f"| {angle:g}° | {100 * accuracy(base, test):.1f} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
