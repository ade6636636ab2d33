"""Tables of a study, each as CSV (plain numbers), Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses.records import write_atomically
from reports.style import mean_interval, method_order, method_style

NOTHING = "–"


def main_table(records: pd.DataFrame, *, rho: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Main results by method: text (mean ± half-width of the 95 % interval over seeds) and plain numbers."""
    at_rho = np.isclose(records["rho"].astype(float), rho)
    rise, space = records["measure"] == "worst_case_rise", records["subspace"]
    top = (records["measure"] == "hessian_eigenvalue") & (records["algorithm"] == "lanczos") & (records["k"] == 1)
    columns = {
        "test accuracy (%)": (records["measure"] == "test_accuracy", 100.0, 1),
        "test loss": (records["measure"] == "test_loss", 1.0, 3),
        "train loss": (records["measure"] == "train_loss", 1.0, 4),
        f"rise, full (rho={rho:g})": (rise & at_rho & (space == "full"), 1.0, 3),
        f"rise, LoRA (rho={rho:g})": (rise & at_rho & (space == "lora"), 1.0, 3),
        "top eigenvalue": (top.fillna(False), 1.0, 2),
    }
    shown, plain = {}, {}
    for method in method_order(records.loc[records["measure"] == "train_loss", "method"]):
        own = records["method"] == method
        summary = {
            name: (*mean_interval(scale * records.loc[own & mask, "value"]), digits)
            for name, (mask, scale, digits) in columns.items()
        }
        shown[method_style(method).label] = {name: _plus_minus(*entry) for name, entry in summary.items()}
        plain[method] = {
            f"{name} {part}": entry[index]
            for name, entry in summary.items()
            for index, part in enumerate(("mean", "half-width"))
        }
    return _by_row(shown, "method"), _by_row(plain, "method")


def cost_table(records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cost of a step by method, absolute and relative to LoRA."""
    measures = ("gradient_passes", "trainable_parameters", "step_seconds", "peak_memory_bytes")
    medians = records[records["measure"].isin(measures)].groupby(["method", "measure"])["value"].median().unstack()
    medians = medians.reindex(columns=list(measures))
    shown, plain = {}, {}
    for method in method_order(medians.index):
        row = medians.loc[method]
        ratios = row / medians.loc["lora"] if "lora" in medians.index else row * math.nan
        shown[method_style(method).label] = {
            "gradient passes": _number(row["gradient_passes"], 0),
            "trainable weights": _number(row["trainable_parameters"], 0),
            "ms a step": _number(1e3 * row["step_seconds"], 1),
            "over LoRA": _number(ratios["step_seconds"], 2),
            "peak MiB": _number(row["peak_memory_bytes"] / 2**20, 1),
            "memory over LoRA": _number(ratios["peak_memory_bytes"], 2),
        }
        plain[method] = row.to_dict() | {
            "step_over_lora": ratios["step_seconds"],
            "memory_over_lora": ratios["peak_memory_bytes"],
        }
    return _by_row(shown, "method"), _by_row(plain, "method")


def agreement_table(records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How the eigensolvers agree: largest relative difference from Lanczos, and residuals."""
    chosen = records[records["measure"].isin(["hessian_eigenvalue", "hessian_residual"])]
    keys = ["method", "train_size", "seed", "k"]
    wide = chosen.pivot_table(index=keys, columns=["measure", "algorithm"], values="value")
    plain = {}
    for algorithm in ("lanczos", "power_iteration", "pyhessian"):
        if ("hessian_eigenvalue", algorithm) not in wide.columns:
            continue
        values = wide["hessian_eigenvalue", algorithm].dropna()
        difference = (values / wide.loc[values.index, ("hessian_eigenvalue", "lanczos")] - 1).abs()
        residuals = wide.loc[values.index, ("hessian_residual", algorithm)]
        plain[algorithm] = {
            "eigenpairs": float(len(values)),
            "largest relative difference from Lanczos": difference.max(),
            "median residual": residuals.median(),
            "largest residual": residuals.max(),
        }
    shown = {
        name: {key: f"{value:.0f}" if key == "eigenpairs" else f"{value:.1e}" for key, value in row.items()}
        for name, row in plain.items()
    }
    return _by_row(shown, "algorithm"), _by_row(plain, "algorithm")


def claims_table(claims: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a comparison: effect, interval, adjusted p-value and the claim's verdict."""
    shown, plain = [], []
    for claim in claims["claims"]:
        for part in claim["parts"]:
            plain.append(
                {key: claim[key] for key in ("number", "statement", "verdict", "p_adjusted", "test")}
                | {key: part[key] for key in ("name", "effect", "low", "high", "unit", "n", "p_value")}
            )
            shown.append(
                {
                    "claim": str(claim["number"]),
                    "verdict": claim["verdict"],
                    "comparison": part["name"],
                    "effect": f"{significant(part['effect'])} {part['unit']}",
                    "95 % interval": interval(part["low"], part["high"]),
                    "p (Holm, claim)": f"{claim['p_adjusted']:.3g}",
                }
            )
    return pd.DataFrame(shown), pd.DataFrame(plain)


def write_tables(tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], folder: Path) -> None:
    """Write each (text, numbers) pair as NAME.md, NAME.tex and NAME.csv."""
    for name, (shown, plain) in tables.items():
        texts = {"md": _markdown(shown), "tex": _latex(shown), "csv": plain.to_csv(index=False)}
        for suffix, text in texts.items():
            write_atomically(folder / f"{name}.{suffix}", partial(_write, text))


def significant(value: float | None) -> str:
    """Three significant digits; a dash for what is undefined."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.3g}"


def interval(low: float | None, high: float | None) -> str:
    """An interval in brackets; ``unbounded`` if it has no ends."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return NOTHING
    if math.isinf(low) or math.isinf(high):
        return "unbounded"
    return f"[{low:.3g}, {high:.3g}]"


def _write(text: str, path: Path) -> None:
    path.write_text(text)


def _plus_minus(mean: float, half: float, digits: int) -> str:
    if math.isnan(mean):
        return NOTHING
    return f"{mean:.{digits}f} ± {NOTHING if math.isnan(half) else f'{half:.{digits}f}'}"


def _number(value: Any, digits: int) -> str:
    return NOTHING if math.isnan(value) else f"{value:,.{digits}f}"


def _by_row(rows: Mapping[str, Mapping[str, Any]], name: str) -> pd.DataFrame:
    return pd.DataFrame([{name: key} | dict(row) for key, row in rows.items()])


def _markdown(frame: pd.DataFrame) -> str:
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _latex(frame: pd.DataFrame) -> str:
    replacements = {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "±": r"$\pm$", "–": "--", "−": "$-$"}

    def escape(text: str) -> str:
        return "".join(replacements.get(character, character) for character in text)

    rows = [" & ".join(escape(str(cell)) for cell in row) + r" \\" for row in frame.to_numpy().tolist()]
    header = " & ".join(escape(str(column)) for column in frame.columns) + r" \\"
    layout = "l" + "r" * (len(frame.columns) - 1)
    lines = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", ""])
