"""What a second worker and a second rank bring, and how the cost of a product grows.

``python benchmarks/scaling.py [--json FILE]`` on a machine with two cores at rest:

- cells an hour: eight trainings of the digits study one after the other, and by two worker processes that are warm;
- a Hessian-vector product over 512 digits, by one process and by two gloo ranks with half of the digits each;
- a product against the number of weights, and against the number of examples.

Every process computes with one thread; times are medians, speed-ups ratios of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from analyses.running.audit import train_only
from analyses.running.engines import LocalEngine, SequentialEngine
from analyses.running.executors import Engine, quieten, run_cells
from analyses.running.preparing import prepare
from analyses.study import Cell, StudyFolder, load_preset
from landscape import EmpiricalRisk, HessianOperator
from landscape.distributed import Ranks

EXAMPLES, REPEATS = 512, 7


def perceptron(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))


def digits(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 64, generator=generator), torch.randint(0, 10, (count,), generator=generator)
    return [(x[first : first + 64], y[first : first + 64]) for first in range(0, count, 64)]


def seconds(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median over the repeats, after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def product_seconds(width: int, batches: list[tuple[Tensor, Tensor]]) -> float:
    operator = HessianOperator(EmpiricalRisk(perceptron(width), batches, check=False), check=False)
    vector = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(1))
    return seconds(lambda: operator.matvec(vector))


def cells_an_hour(engine: Engine) -> float:
    """Eight trainings, in a folder of their own."""
    study = load_preset("digits")
    with tempfile.TemporaryDirectory() as name:
        folder = StudyFolder(Path(name))
        prepare(study, folder)
        cells = [Cell(method, seed, 100) for seed in range(4) for method in ("lora", "bilora")]
        run_cells(cells[:2], partial(train_only, study), folder, engine)  # workers start, and import torch
        began = time.perf_counter()
        failures = run_cells(
            [Cell(cell.method, cell.seed + 10, 100) for cell in cells], partial(train_only, study), folder, engine
        )
        assert not failures, failures
        return 3600 * len(cells) / (time.perf_counter() - began)


def one_rank(rank: int, place: str, width: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
    took = product_seconds(width, Ranks().share(digits(EXAMPLES)))
    if rank == 0:
        (Path(place) / "seconds").write_text(str(took))
    dist.destroy_process_group()


def two_ranks_seconds(width: int) -> float:
    with tempfile.TemporaryDirectory() as place:
        mp.spawn(one_rank, args=(place, width), nprocs=2)
        return float((Path(place) / "seconds").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write numbers and ratios there")
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    one, two = cells_an_hour(SequentialEngine()), cells_an_hour(LocalEngine(2))
    print(f"cells an hour: one worker {one:.0f}, two {two:.0f}")
    width = 1024
    alone, together = product_seconds(width, digits(EXAMPLES)), two_ranks_seconds(width)
    print(f"a product over {EXAMPLES} examples: one process {alone:.3f} s, two ranks {together:.3f} s")
    print("\n| weights | examples | product, s | ns a weight and example |\n| --- | --- | --- | --- |")
    grid = []
    for hidden, count in ((256, 512), (512, 512), (1024, 512), (2048, 512), (512, 128), (512, 2048)):
        size = sum(parameter.numel() for parameter in perceptron(hidden).parameters())
        took = product_seconds(hidden, digits(count))
        grid.append({"weights": size, "examples": count, "seconds": took})
        print(f"| {size} | {count} | {took:.4f} | {1e9 * took / size / count:.2f} |")
    ratios = {"scaling.speedup_two_workers": two / one, "scaling.speedup_two_ranks": alone / together}
    print("\n" + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    if options.json:
        environment = {"torch": torch.__version__, "cpus": os.cpu_count()}
        options.json.write_text(json.dumps({"environment": environment, "grid": grid, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
