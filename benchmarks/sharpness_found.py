"""How much of the worst case do the two searches find, and for how many passes?

Of the twelve digits minima in benchmarks/minima, at three radii, against the best rise that `exhaustive_search` met
from 130 starts. A ratio above 1 is a maximum that the exhaustive search missed.
"""

from __future__ import annotations

import statistics
from typing import Any

import joblib
from digits_minima import NAMES, RADII, load_risk
from exhaustive_search import reference

from analyses.running.executors import quieten
from landscape import sharpness_curve


def curve(name: str, radii: tuple[float, ...], seed: int) -> list[dict[str, Any]]:
    """Rows of one minimum's balls."""
    quieten()
    kept = reference().set_index(["minimum", "rho"])["rise"]
    return [
        {
            "minimum": name, "rho": found.rho, "rise": found.rise, "ratio": found.rise / float(kept[name, found.rho]),
            "gap": found.gap, "converged": found.converged, "passes": found.num_passes, "winner": found.winner,
            "effective_examples": found.effective_examples, "five": found.carried_by(5),
        }
        for found in sharpness_curve(load_risk(name), radii, seed=seed)
    ]  # fmt: skip


def found_over_exhaustive(quick: bool, seed: int, jobs: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Print the table; return its rows and the ratios."""
    names, radii = (NAMES[:4], RADII[1:2]) if quick else (NAMES, RADII)
    rows: list[dict[str, Any]] = []
    print("\n| minimum | rho | rise | found / exhaustive | gap | passes | winner | effective examples | held by five |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        work = (joblib.delayed(curve)(name, radii, seed) for name in names)
        for part in joblib.Parallel(n_jobs=jobs, return_as="generator")(work):
            rows += part
            for row in part:
                print(
                    f"| {row['minimum']} | {row['rho']} | {row['rise']:.4g} | {row['ratio']:.3f} | {row['gap']:.1%}"
                    f"{'' if row['converged'] else ' (apart)'} | {row['passes']} | {row['winner']} | "
                    f"{row['effective_examples']:.1f} | {row['five']:.0%} |",
                    flush=True,
                )
    ratios = {
        "sharpness.found_over_exhaustive_min": min(row["ratio"] for row in rows),
        "sharpness.found_over_exhaustive_median": statistics.median(row["ratio"] for row in rows),
        "sharpness.median_passes": statistics.median(row["passes"] for row in rows),
    }
    print(f"\n{len(rows)} balls: " + ", ".join(f"{name} {value:.4g}" for name, value in ratios.items()))
    return rows, ratios
