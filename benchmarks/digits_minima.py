"""Twelve minima of the digits study, kept under benchmarks/minima: three seeds each of four methods.

Worst cases are compared with those of `exhaustive_search`, which takes hours; training again on another machine would
end at other weights. So the weights are kept: the merged model's state, one safetensors file a minimum. They come from

    landscape audit --preset digits --out results/digits
    python benchmarks/digits_minima.py results/digits
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from analyses.measures.minima import load_subject
from analyses.running.executors import quieten
from analyses.study import Cell, StudyFolder, load_study
from analyses.study.task_settings import DigitsTask
from analyses.tasks.base import Examples
from analyses.tasks.digits import Digits
from landscape import EmpiricalRisk

FOLDER = Path(__file__).parent / "minima"
METHODS, SEEDS = ("lora", "bilora", "sam", "full"), (0, 1, 2)
RADII = (0.05, 0.1, 0.2)
NAMES = tuple(f"{method}-{seed}" for seed in SEEDS for method in METHODS)
TRAIN_SIZE = 100
ADAPTED = r"layers\..*(proj|fc1|fc2)\.weight$"


@dataclass(frozen=True)
class Bundled:
    """A minimum's risk, and the batch of any of its examples by number."""

    risk: EmpiricalRisk
    part: Callable[[Sequence[int]], Examples]


def load(name: str) -> Bundled:
    """Mean training loss of a minimum over the adapted layers' weights, as the study measures it."""
    task = Digits(DigitsTask(), TRAIN_SIZE)
    model = task.new_model(0)
    model.load_state_dict(load_file(FOLDER / f"{name}.safetensors"))
    (batch,) = task.batches("train")
    return Bundled(
        EmpiricalRisk(model, [batch], params=ADAPTED),
        lambda numbers: {key: rows[list(numbers)] for key, rows in batch.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a digits study whose runs are trained")
    folder = StudyFolder(parser.parse_args().study)
    quieten()
    study = load_study(folder.settings)
    for name in NAMES:
        method, seed = name.split("-")
        model = load_subject(study, Cell(method, int(seed), TRAIN_SIZE), folder).minimum.model
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(state, FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    main()
