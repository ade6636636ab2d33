"""Worst cases of the bundled minima as a search from everywhere finds them; kept in benchmarks/minima.

Every one of the examples is a start (its own loss is ascended for 8 steps first), and so are the gradients of 30
random tenths of the examples. From each, 25 steps of the fixed-point iteration m <- m / 2 + g / |g|, epsilon <- rho *
m / |m|: about 3,400 passes over the data a ball, where `landscape.worst_case_sharpness` takes some 235. It shares no
code with that search but the risk. At MiniLM's minima, where a pass takes two seconds, the starts are the 20 of 128
examples whose own losses rise most, and 10 tenths: 800 passes, no exhaustive search but one of three times the effort.
Run once, about 6 minutes a ball of the digits, half an hour one of MiniLM's, with

    python benchmarks/exhaustive_search.py --jobs 2

Balls that stand in the table are not searched again; --fresh NAME RHO repeats one of them and prints both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import digits_minima
import joblib
import minilm_minima
import pandas as pd
import torch
from digits_minima import FOLDER, Bundled
from torch import Tensor

from analyses.running.executors import quieten
from landscape import EmpiricalRisk

TABLE = FOLDER / "exhaustive.csv"
OWN_STEPS, STEPS, MOMENTUM = 8, 25, 0.5
SEED = 12345


def ascend(risk: EmpiricalRisk, rho: float, direction: Tensor, steps: int) -> tuple[float, Tensor]:
    """Largest loss met by the fixed-point iteration, and where."""
    momentum, epsilon = torch.zeros_like(direction), rho * direction / direction.norm()
    best = (-1.0, epsilon)
    for step in range(steps + 1):
        loss, gradient = risk.loss_and_gradient(risk.theta + epsilon)
        best = max(best, (loss, epsilon), key=lambda point: point[0])
        if step == steps or not gradient.norm() > 0:
            break
        momentum = MOMENTUM * momentum + gradient / gradient.norm()
        epsilon = rho * momentum / momentum.norm()
    return best


@dataclass(frozen=True)
class Effort:
    """How many examples, those of the highest own rise first, and random tenths are starts."""

    examples: int
    tenths: int


DIGITS, MINILM = Effort(digits_minima.TRAIN_SIZE, 30), Effort(20, 10)


def load(name: str) -> Bundled:
    """A bundled minimum."""
    return minilm_minima.load(name) if name in minilm_minima.NAMES else digits_minima.load(name)


def balls() -> list[tuple[str, float]]:
    """Minimum and radius of every ball that can be searched here: MiniLM's need their packages."""
    digits = product(digits_minima.NAMES, digits_minima.RADII)
    return [*digits, *(product(minilm_minima.NAMES, minilm_minima.RADII) if minilm_minima.installed() else ())]


def starts(minimum: Bundled, rho: float, effort: Effort) -> Iterator[tuple[str, Tensor]]:
    count = minimum.risk.num_examples
    own_rises = []
    for number in range(count):
        own = minimum.risk.on([minimum.part([number])])
        highest, end = ascend(own, rho, own.gradient(), OWN_STEPS)
        own_rises.append((highest - own.loss(), number, end))
    for _, number, end in sorted(own_rises, key=lambda one: one[0], reverse=True)[: effort.examples]:
        yield f"example {number}", end
    generator = torch.Generator().manual_seed(SEED)
    for number in range(effort.tenths):
        rows = torch.randperm(count, generator=generator)[: count // 10].tolist()
        yield f"tenth {number}", minimum.risk.on([minimum.part(rows)]).gradient()


def search(name: str, rho: float) -> dict[str, object]:
    """One row of the table."""
    quieten()
    minimum = load(name)
    risk, effort = minimum.risk, MINILM if name in minilm_minima.NAMES else DIGITS
    found = {start: ascend(risk, rho, direction, STEPS)[0] for start, direction in starts(minimum, rho, effort)}
    best = max(found, key=lambda start: found[start])
    return {"minimum": name, "rho": rho, "loss": risk.loss(), "rise": found[best] - risk.loss(), "start": best}


def reference() -> pd.DataFrame:
    """Best rises by minimum and radius: columns minimum, rho, loss, rise, start."""
    return pd.read_csv(TABLE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--fresh", nargs=2, metavar=("NAME", "RHO"), help="search one ball again and compare")
    options = parser.parse_args()
    if options.fresh:
        name, rho = options.fresh[0], float(options.fresh[1])
        kept = reference().query("minimum == @name and rho == @rho")
        print(pd.concat([kept, pd.DataFrame([search(name, rho)])]).to_string(index=False))
        return
    rows = reference().to_dict("records") if TABLE.exists() else []
    known = {(row["minimum"], row["rho"]) for row in rows}
    left = [ball for ball in balls() if ball not in known]
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        work = (joblib.delayed(search)(name, rho) for name, rho in left)
        for row in joblib.Parallel(n_jobs=options.jobs, return_as="generator_unordered")(work):
            rows.append(row)
            pd.DataFrame(rows).sort_values(["minimum", "rho"]).to_csv(TABLE, index=False)
            print(row, flush=True)


if __name__ == "__main__":
    main()
