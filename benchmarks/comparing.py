"""Time and peak memory of `landscape compare` on two checkpoints of a GPT-2 with 124M random weights.

``python benchmarks/comparing.py [--texts 2] [--steps 2] [--json FILE]`` writes the checkpoints, a tokenizer of whole
words and texts of 64 tokens into a temporary folder, and compares the two as a user would: top eigenvalue, and worst
case in the l2 ball at two radii, over all weights. The peak is the command's resident memory, files that it maps
included. Steps and starts are few: they take time, not memory.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

TARGET_GIB = 8.0
TOKENS = 64
RADII = ("0.05", "0.1")


def write_inputs(folder: Path, texts: int) -> None:
    """Two checkpoints a small distance apart, and texts of words that are tokens."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    words = {f"w{number}": number for number in range(model.config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name in ("a", "b"):
        model.save_pretrained(folder / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1").save_pretrained(folder / name)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=1e-3)
    draw = random.Random(0)
    rows = [{"text": " ".join(draw.choices(list(words), k=TOKENS))} for _ in range(texts)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_settings(path: Path, steps: int) -> None:
    """One small search a radius, and one eigenpair."""
    effort = {"steps": steps, "restarts": 1, "screened": 1, "max_passes": 1, "average_samples": 2}
    curvature = {"k": 1, "lanczos_tol": 0.1, "power_tol": 0.1, "power_matvecs": 3}
    path.write_text(yaml.safe_dump({"worst_case": effort, "curvature": curvature, "graph_gib": 0.01}))


def main() -> None:
    """Compare, and print seconds and the peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="of a climb")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, options.texts)
        write_settings(folder / "settings.yaml", options.steps)
        command = [
            sys.executable, "-m", "analyses.cli", "compare", str(folder / "a"), str(folder / "b"),
            "--data", str(folder / "texts.jsonl"), "--task", "causal_lm", "--radii", *RADII, "--balls", "l2",
            "--what", "fit", "sharpness", "curvature", "--settings", str(folder / "settings.yaml"),
            "--out", str(folder / "out"),
        ]  # fmt: skip
        began = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - began
    gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"comparing.gpt2_gib {gib:.2f} ({seconds / 60:.0f} minutes, target {TARGET_GIB:g} GiB)")
    if options.json:
        options.json.write_text(json.dumps({"gib": gib, "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
