"""Do the verdicts err as often as they say? Simulated studies, judged as real ones are.

    python benchmarks/judges.py [--quick] [--json FILE]

A row is a truth and a rule: the ratio of two methods' rises, the spreads of their logarithms over seeds (0.11 and 0.35
give ratios the spreads of the committed records, 0.16 to 0.49), their skew, and the number of seeds, fixed or added
from look to look. Columns are the shares of studies that end with each verdict, the coverage of the 95 % interval, and
the mean number of seeds. At a true ratio of 1 "supported" and "contradicted" are errors, each at most 2.5 %; at the
margin itself "equivalent" is one, at most 5 %. `power` is what was promised: the effect is the smallest that so many
runs find with 80 % power. Intervals after a sequential rule are those of the last look, unadjusted, and cover less.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from analyses.judging.power import smallest_effect
from analyses.judging.simulation import Truth, simulate

ALPHA, MARGIN = 0.05, 1.25
SPREADS = {"narrow": (0.11, 0.11), "wide": (0.35, 0.35), "unequal": (0.05, 0.45)}
SKEWS = {"lognormal": (0.0, 0.0), "unequal skew": (1.0, 0.0)}
RULES = {"5 seeds": [5], "12 seeds": [12], "5 to 20 in threes": [5, 8, 11, 14, 17, 20]}


def rows(studies: int) -> list[dict[str, Any]]:
    """One row a truth and rule."""
    found = []
    for width, spreads in SPREADS.items():
        spread = math.hypot(*spreads)
        for shape, skews in SKEWS.items():
            for rule, looks in RULES.items():
                seen = smallest_effect(spread, looks[0], alpha=ALPHA)
                assert seen is not None
                for truth, ratio in {"equal": 1.0, "at the margin": MARGIN, "power": math.exp(-seen)}.items():
                    rates = simulate(
                        Truth(ratio, spreads, skews), looks, studies=studies, alpha=ALPHA, margin=MARGIN, seed=1
                    )
                    found.append({"spreads": width, "shape": shape, "rule": rule, "truth": truth, "ratio": ratio}
                                 | vars(rates))  # fmt: skip
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 studies a row in place of 2,000")
    parser.add_argument("--json", type=Path, help="write environment, rows and ratios there")
    options = parser.parse_args()
    table = rows(200 if options.quick else 2000)
    columns = ["supported", "contradicted", "equivalent", "coverage"]
    print("| spreads | shape | rule | truth | ratio | " + " | ".join([*columns, "seeds"]) + " |")
    print("| --- " * 10 + "|")
    for row in table:
        shares = " | ".join(f"{100 * row[name]:.1f}" for name in columns)
        print(f"| {row['spreads']} | {row['shape']} | {row['rule']} | {row['truth']} | {row['ratio']:.2f} | {shares} | "
              f"{row['seeds']:.1f} |")  # fmt: skip
    equal = [row for row in table if row["truth"] == "equal"]
    margin = [row for row in table if row["truth"] == "at the margin"]
    fixed = [row for row in table if " to " not in row["rule"]]
    ratios = {
        "judges.worst_false_direction": max(max(row["supported"], row["contradicted"]) for row in equal),
        "judges.worst_false_equivalence": max(row["equivalent"] for row in margin),
        "judges.lowest_coverage": min(row["coverage"] for row in fixed),
    }
    print("\n" + "\n".join(f"{key} {value:.4f}" for key, value in ratios.items()))
    if options.json:
        environment = {"python": platform.python_version(), "scipy": version("scipy"), "numpy": version("numpy")}
        options.json.write_text(json.dumps({"environment": environment, "rows": table, "ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
