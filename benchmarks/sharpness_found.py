"""How much of the worst case do the two searches find, and for how many passes?

Of the twelve digits minima in benchmarks/minima, at three radii, against the best rise that `exhaustive_search` met
from 130 starts; with ``minilm`` of those minima of MiniLM that the table has, against 30 starts, where its packages are
installed: an ascent there takes minutes. A ratio above 1 is a maximum that the exhaustive search missed.
"""

from __future__ import annotations

import statistics
from typing import Any

import joblib
from exhaustive_search import balls, load, reference

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
        for found in sharpness_curve(load(name).risk, radii, seed=seed)
    ]  # fmt: skip


def found_over_exhaustive(
    quick: bool, seed: int, jobs: int, *, minilm: bool = False
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Print the table; return its rows and the ratios."""
    radii: dict[str, tuple[float, ...]] = {}
    for name, rho in balls():
        radii[name] = (*radii.get(name, ()), rho)
    known = set(reference()["minimum"])
    radii = {name: own for name, own in radii.items() if name in known and name.startswith("minilm") == minilm}
    if quick:
        radii = {name: own[len(own) // 2 :][:1] for name, own in list(radii.items())[:4]}
    rows: list[dict[str, Any]] = []
    print("\n| minimum | rho | rise | found / exhaustive | gap | passes | winner | effective examples | held by five |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        work = (joblib.delayed(curve)(name, own, seed) for name, own in radii.items())
        for part in joblib.Parallel(n_jobs=jobs, return_as="generator")(work):
            rows += part
            for row in part:
                print(
                    f"| {row['minimum']} | {row['rho']} | {row['rise']:.4g} | {row['ratio']:.3f} | {row['gap']:.1%}"
                    f"{'' if row['converged'] else ' (apart)'} | {row['passes']} | {row['winner']} | "
                    f"{row['effective_examples']:.1f} | {row['five']:.0%} |",
                    flush=True,
                )
    kind = "sharpness.minilm_" if minilm else "sharpness."
    ratios = {
        f"{kind}found_over_exhaustive_min": min(row["ratio"] for row in rows),
        f"{kind}found_over_exhaustive_median": statistics.median(row["ratio"] for row in rows),
        f"{kind}median_passes": statistics.median(row["passes"] for row in rows),
    }
    print(f"\n{len(rows)} balls: " + ", ".join(f"{name} {value:.4g}" for name, value in ratios.items()))
    return rows, ratios
