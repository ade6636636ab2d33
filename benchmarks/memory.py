"""Peak memory on a GPT-2 of 124M random weights and 8 sequences of 64 tokens.

``python benchmarks/memory.py [--products 6] [--json FILE]`` measures each section in a process of its own, by the
high-water mark of resident memory that Linux keeps. A few products show the peak: memory does not grow once a basis is
full.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from landscape import EmpiricalRisk, HessianOperator, lanczos, sharpness_curve
from landscape.losses import next_token_cross_entropy

SECTIONS = ("gradient", "product", "top_eigenvalue", "sharpness_curve")
TARGETS_GIB = {"top_eigenvalue": 6.0, "sharpness_curve": 5.0}


def risk() -> EmpiricalRisk:
    """One sequence a batch, so that graphs are small."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    tokens = torch.randint(model.config.vocab_size, (8, 64))
    batches = [{"input_ids": row[None], "labels": row[None]} for row in tokens]
    return EmpiricalRisk(model, batches, loss=next_token_cross_entropy, check=False)


def run(section: str, products: int) -> dict[str, float]:
    """Peak resident memory of one section in GiB, and its seconds."""
    data = risk()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    began = time.perf_counter()
    if section == "gradient":
        data.gradient()
    elif section == "product":
        HessianOperator(data, graph_budget=0).matvec(data.theta)
    elif section == "top_eigenvalue":
        operator = HessianOperator(data, graph_budget=0)
        lanczos(operator, 1, max_matvecs=products)
    else:
        sharpness_curve(data, [0.05, 0.1], steps=products, restarts=1, screened=2, max_passes=1)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"gib": int(status["VmHWM"].split()[0]) / 2**20, "seconds": time.perf_counter() - began}


def main() -> None:
    """Measure all sections and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--products", type=int, default=6, help="products, and steps of a climb")
    parser.add_argument("--section", choices=SECTIONS, help="measure this one in this process")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.section:
        print(json.dumps(run(options.section, options.products)))
        return
    found = {}
    for section in SECTIONS:
        command = [sys.executable, __file__, "--section", section, "--products", str(options.products)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[section] = json.loads(done.stdout.splitlines()[-1])
        target = f", target {TARGETS_GIB[section]:g}" if section in TARGETS_GIB else ""
        print(f"memory.{section}_gib {found[section]['gib']:.2f} ({found[section]['seconds']:.0f} s{target})")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
