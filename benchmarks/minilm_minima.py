"""Three minima of the MiniLM ladder, kept under benchmarks/minima as PEFT adapters; their base is in the packages.

They need the extra ``minilm`` and come from

    landscape train --preset minilm-ladder --method NAME --seed 0 --out results/minilm-ladder
    python benchmarks/minilm_minima.py results/minilm-ladder
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import copyfile

from digits_minima import FOLDER, Bundled

from analyses.study import Cell, StudyFolder, load_study
from analyses.study.task_settings import MinilmSentimentTask
from analyses.tasks.base import Examples
from analyses.tasks.minilm_sentiment import PACKAGES, MinilmSentiment
from bilora import minimum

METHODS, SEED, RADII, TRAIN_SIZE = ("lora", "bilora", "lora_sam_full"), 0, (0.1,), 128
NAMES = tuple(f"minilm-{method}" for method in METHODS)


def installed() -> bool:
    """Whether the model and the corpus are here."""
    return all(find_spec(name) for name in PACKAGES)


def load(name: str) -> Bundled:
    """Mean training loss of a minimum over the adapted layers' weights, as the study measures it."""
    settings = MinilmSentimentTask(name="minilm_sentiment")
    task = MinilmSentiment(settings, TRAIN_SIZE)
    found = minimum(FOLDER / name, base=task.new_model(settings.head_seed))
    examples = task.dataset("train")

    def part(numbers: Sequence[int]) -> Examples:
        return task.collate([examples[number] for number in numbers])

    return Bundled(found.risk(task.batches("train")), part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a study whose runs are trained")
    folder = StudyFolder(parser.parse_args().study)
    study = load_study(folder.settings)
    for name, method in zip(NAMES, METHODS, strict=True):
        adapter = folder.run(study, Cell(method, SEED, TRAIN_SIZE)) / "primary"
        (FOLDER / name).mkdir(exist_ok=True)
        copyfile(adapter / "adapter_model.safetensors", FOLDER / name / "adapter_model.safetensors")
        described = json.loads((adapter / "adapter_config.json").read_text())
        described["base_model_name_or_path"] = None  # a folder of the machine that trained
        (FOLDER / name / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n")


if __name__ == "__main__":
    main()
