"""What does a step of every method cost, in units of a LoRA step?

Two models with random weights, since their values change no cost: one of MiniLM-L6's shape (384 wide, 6 layers, rank 8
on query and value, 16 texts of 64 tokens) and the digits ViT (64 wide, 4 layers, rank 4 on all linear layers, 25
images). All methods run in one process, a few steps of each in turn; a ratio is the median over rounds of a round's
time over LoRA's in that round. Memory is the weights, the optimizer's state and the most that one step allocates beside
them; on the CPU it is counted from the allocator's events, on CUDA read from its statistics.

LoRA is PEFT's own forward pass. Bi-LoRA's two modules run as one product, which a single adapter gains nothing from
except its last addition; `lora_2r` shows what twice the rank costs in PEFT.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)

from analyses.measures.method_step import MethodStep
from analyses.running.executors import quieten
from analyses.study.task_settings import DigitsTask
from analyses.tasks.digits import Digits
from bilora import METHODS, BiLoraConfig, BiLoraTrainer, build_method

STEPS = {"minilm": 2, "vit": 20}
BATCH = {"minilm": 16, "vit": 25}
VARIANTS = {"bilora_fresh_one": "bilora_fresh"}
"""Rows beside the registry's: a name and its method. The fresh auxiliary's ascent on one example of the batch."""


def minilm() -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    tokens = torch.randint(1000, (16, 64))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.randint(2, (16,))}
    return BertForSequenceClassification(config), batch, {"r": 8, "target_modules": ["query", "value"]}


def vit() -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    batch = {"pixel_values": torch.randn(25, 1, 8, 8), "labels": torch.randint(10, (25,))}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
    return Digits(DigitsTask(), 100).new_model(0), batch, {"r": 4, "target_modules": targets}


def step_costs(name: str, device: str, rounds: int, methods: list[str]) -> list[dict[str, Any]]:
    """One row a method for one model."""
    torch.manual_seed(0)
    model, batch, settings = {"minilm": minilm, "vit": vit}[name]()
    batch = {key: value.to(device) for key, value in batch.items()}
    steps, times = {}, {method: [] for method in methods}
    for method in methods:
        family = VARIANTS.get(method, method)
        wanted = {"rho": 0.05} | settings | ({"ascent_fraction": 1 / BATCH[name]} if method in VARIANTS else {})
        used = {key: value for key, value in wanted.items() if key in METHODS[family].uses}
        config = BiLoraConfig(method=family, **used)
        prepared = build_method(copy.deepcopy(model).to(device), config, seed=0)
        steps[method] = MethodStep(prepared, batch, lr=1e-4)
    for _ in range(rounds):
        for method, step in steps.items():
            times[method].append(step.median_seconds(STEPS[name]))
    base = {key: getattr(steps["lora"], key)() for key in ("flops", "peak_bytes")}
    rows = []
    for method, step in steps.items():
        ratios = sorted(mine / lora for mine, lora in zip(times[method], times["lora"], strict=True))
        peak, flops = step.peak_bytes(), step.flops()
        rows.append(
            {
                "model": name,
                "method": method,
                "seconds": statistics.median(times[method]),
                "step_over_lora": statistics.median(ratios),
                "ratio_range": [ratios[0], ratios[-1]],
                "passes": step.passes(),
                "flops_over_lora": flops / base["flops"],
                "peak_bytes": peak,
                "memory_over_lora": peak / base["peak_bytes"],
                "parameter_bytes": step.parameter_bytes(),
                "optimizer_bytes": step.optimizer_bytes(),
                "saved_activation_bytes": step.saved_bytes(),
            }
        )
    return rows


class Clock(TrainerCallback):
    """Times of the steps' ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def trainer_overhead(rounds: int) -> tuple[float, float]:
    """Time of a Bi-LoRA step in `BiLoraTrainer` over the same update in a bare loop, and the seconds before the first.

    Medians over steps on the ViT, the loops in turn.
    """
    model, batch, settings = vit()
    examples = [{key: value[i] for key, value in batch.items()} for i in range(25)]
    config = BiLoraConfig(rho=0.05, **settings)
    num_steps, ratios, starts = 60, [], []
    for _ in range(rounds):
        bare = MethodStep(build_method(copy.deepcopy(model), config, seed=0), batch, lr=1e-4)
        ends = []
        for _ in range(num_steps):
            # The loop collates its batch too, as any loader does.
            bare.batch = {key: torch.stack([example[key] for example in examples]) for key in batch}
            bare.step()
            ends.append(time.perf_counter())
        clock = Clock()
        with tempfile.TemporaryDirectory() as directory:
            arguments = TrainingArguments(
                output_dir=directory,
                max_steps=num_steps,
                per_device_train_batch_size=25,
                learning_rate=1e-4,
                optim="adamw_torch_fused",
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                remove_unused_columns=False,
                max_grad_norm=0.0,
            )
            trainer = BiLoraTrainer(
                copy.deepcopy(model), arguments, bilora=config, train_dataset=examples, callbacks=[clock]
            )
            trainer.remove_callback(PrinterCallback)
            began = time.perf_counter()
            trainer.train()
        starts.append(clock.ends[0] - began)
        ratios.append(_median_gap(clock.ends) / _median_gap(ends))
    return statistics.median(ratios), statistics.median(starts)


def _median_gap(ends: list[float]) -> float:
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(ends))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the ViT, LoRA, Bi-LoRA and LoRA-SAM only, in seconds")
    parser.add_argument("--json", type=Path, help="write environment, rows and ratios there")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *VARIANTS], help="beside lora; default all")
    parser.add_argument("--rounds", type=int, default=9, help="repetitions of every timing")
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    models = ["vit"] if options.quick else ["vit", "minilm"]
    methods = (
        ["lora", "bilora", "lora_sam"] if options.quick else ["lora", *(m for m in METHODS if m != "lora"), *VARIANTS]
    )
    if options.methods:
        methods = ["lora", *options.methods]
    rows: list[dict[str, Any]] = []
    print("| device | model | method | ms a step | step / LoRA | passes | FLOPs / LoRA | memory / LoRA | saved MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for device in devices:
        for name in models:
            for row in step_costs(name, device, options.rounds, methods):
                rows.append({"device": device} | row)
                low, high = row["ratio_range"]
                print(
                    f"| {device} | {name} | {row['method']} | {row['seconds'] * 1e3:.1f} | "
                    f"{row['step_over_lora']:.2f} ({low:.2f}–{high:.2f}) | {row['passes']:.3g} | "
                    f"{row['flops_over_lora']:.2f} | {row['memory_over_lora']:.3f} | "
                    f"{row['saved_activation_bytes'] / 2**20:.1f} |"
                )
    overhead, start = trainer_overhead(3 if options.quick else options.rounds)
    print(f"\nA BiLoraTrainer step over the same update in a bare loop, digits ViT: {overhead:.2f}")
    print(f"Its first step ends {start:.2f} s after the start.")
    if options.json:
        ratios = {"training_cost.trainer_over_bare_loop.vit": overhead}
        for row in rows:
            suffix = "" if row["device"] == "cpu" else f".{row['device']}"
            for key in ("step_over_lora", "memory_over_lora"):
                ratios[f"training_cost.{key}.{row['method']}.{row['model']}{suffix}"] = row[key]
        environment = {
            "torch": torch.__version__,
            "peft": version("peft"),
            "transformers": version("transformers"),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
        }
        options.json.write_text(json.dumps({"environment": environment, "rows": rows, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
