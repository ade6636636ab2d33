"""Worst cases of the bundled digits minima as a search from everywhere finds them; kept in benchmarks/minima.

Every one of the 100 examples is a start (its own loss is ascended for 8 steps first), and so are the gradients of 30
random tenths of the examples. From each, 25 steps of the fixed-point iteration m <- m / 2 + g / |g|, epsilon <- rho *
m / |m|: about 3,400 passes over the data a ball, where `landscape.worst_case_sharpness` takes some 235. It shares no
code with that search but the risk. Run once, about 6 minutes a ball, with

    python benchmarks/exhaustive_search.py --jobs 2

Balls that stand in the table are not searched again; --fresh NAME RHO repeats one of them and prints both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product

import joblib
import pandas as pd
import torch
from digits_minima import FOLDER, NAMES, RADII, load_risk
from torch import Tensor

from analyses.running.executors import quieten
from landscape import EmpiricalRisk

TABLE = FOLDER / "exhaustive.csv"
OWN_STEPS, STEPS, MOMENTUM = 8, 25, 0.5
TENTHS, SEED = 30, 12345


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


def starts(risk: EmpiricalRisk, rho: float) -> Iterator[tuple[str, Tensor]]:
    (batch,) = risk.batches
    for number in range(risk.num_examples):
        own = risk.on([{key: rows[number : number + 1] for key, rows in batch.items()}])
        yield f"example {number}", ascend(own, rho, own.gradient(), OWN_STEPS)[1]
    generator = torch.Generator().manual_seed(SEED)
    for number in range(TENTHS):
        rows = torch.randperm(risk.num_examples, generator=generator)[: risk.num_examples // 10]
        yield f"tenth {number}", risk.on([{key: tensor[rows] for key, tensor in batch.items()}]).gradient()


def search(name: str, rho: float) -> dict[str, object]:
    """One row of the table."""
    quieten()
    risk = load_risk(name)
    found = {start: ascend(risk, rho, direction, STEPS)[0] for start, direction in starts(risk, rho)}
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
    left = [ball for ball in product(NAMES, RADII) if ball not in known]
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        work = (joblib.delayed(search)(name, rho) for name, rho in left)
        for row in joblib.Parallel(n_jobs=options.jobs, return_as="generator_unordered")(work):
            rows.append(row)
            pd.DataFrame(rows).sort_values(["minimum", "rho"]).to_csv(TABLE, index=False)
            print(row, flush=True)


if __name__ == "__main__":
    main()
