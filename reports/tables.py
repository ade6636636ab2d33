"""Tables of a study, each as CSV (plain numbers), Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses.records import DIVERGED, is_rise, write_atomically
from analyses.records.derive import eigenvalues_by_sign
from analyses.records.seeds import by_seed
from reports.best import significantly_best
from reports.style import mean_interval, method_order, method_style
from reports.units import NATS, loss_unit

NOTHING, UNBOUNDED, BOLD = "–", "unbounded", "**"
ALGORITHMS = ("lanczos", "power_iteration", "pyhessian")
_MOST_DECIMALS = 6
CONVERGED = 5e-2
"""Relative residual up to which the agreement table counts an eigenpair as resolved, whatever the solver's own rule."""
TEXT_COLUMNS = dict.fromkeys(["method", "algorithm", "claim", "comparison", "run"], "l") | {"statement": "p{6cm}"}
LATEX = {character: rf"\{character}" for character in "%_&#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
}


def main_table(records: pd.DataFrame, *, rho: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Main results by method, and by size of the training set where there are several.

    Text has the mean ± half-width of the 95 % interval over seeds, the second frame plain numbers. The best of a column
    of accuracies, test losses or rises is bold where the seeds tell it from all others (`significantly_best`).
    """
    records = records.reset_index(drop=True)
    ranked = eigenvalues_by_sign(records)
    top = ranked.index[(ranked["component"] == "positive") & (ranked["index"] == 1)]
    stationary = (records["measure"] == "gradient_norm") & (records["subspace"] == "full")
    columns = {
        "test accuracy (%)": (records["measure"] == "test_accuracy", 100.0, 1),
        "test loss": (records["measure"] == "test_loss", 1.0, None),
        "train loss": (records["measure"] == "train_loss", 1.0, None),
        f"rise, full (rho={rho:g})": (is_rise(records, "full", rho), 1.0, None),
        f"rise, LoRA (rho={rho:g})": (is_rise(records, "lora", rho), 1.0, None),
        "largest eigenvalue": (records.index.isin(top), 1.0, None),
        "gradient norm": (stationary, 1.0, None),
    }
    judged = {name: name.startswith("test acc") for name in columns if name.startswith(("test", "rise"))}
    trained = records[records["measure"] == "train_loss"]
    sizes = sorted(trained["train_size"].unique())
    shown, plain = [], []
    for size in sizes:
        of_size = records["train_size"] == size
        examples = {"examples": size} if len(sizes) > 1 else {}
        best = {
            name: significantly_best(_by_method(records[of_size & columns[name][0]], log="rise" in name), higher=higher)
            for name, higher in judged.items()
        }
        for method in method_order(trained.loc[trained["train_size"] == size, "method"]):
            own = (records["method"] == method) & of_size
            summary = {
                name: (*mean_interval(scale * records.loc[own & mask, "value"]), digits)
                for name, (mask, scale, digits) in columns.items()
            }
            texts = {name: plus_minus(*entry) for name, entry in summary.items()}
            lost = {name: _lost(records.loc[own & mask, "value"]) for name, (mask, _, _) in columns.items()}
            texts |= {name: f"{texts[name]} {words}" for name, words in lost.items() if words}
            runs_lost = int((own & (records["measure"] == DIVERGED)).sum())
            texts["runs diverged"] = str(runs_lost) if runs_lost else NOTHING
            texts |= {name: f"{BOLD}{texts[name]}{BOLD}" for name, winner in best.items() if winner == method}
            shown.append({"method": method_style(method).label} | examples | texts)
            numbers = {
                f"{name} {part}": entry[index]
                for name, entry in summary.items()
                for index, part in enumerate(("mean", "half-width"))
            }
            plain.append({"method": method} | examples | numbers)
    return pd.DataFrame(shown), pd.DataFrame(plain)


def _lost(values: pd.Series) -> str:
    """How many values a mean leaves out because they are not finite; empty for none."""
    finite = int(np.isfinite(values.astype(float)).sum())
    return "" if finite == len(values) else f"({finite} of {len(values)} finite)"


def difference_table(records: pd.DataFrame, *, rho: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy minus a baseline's, and rises over its, seed by seed: mean ± half-width, ratio with its 95 % interval.

    The baseline is LoRA; ``bilora_r2`` is compared with ``lora_r2`` where the study has it, and SAM over all weights
    with full fine-tuning, since against LoRA it would mix what SAM does with what full fine-tuning does. With several
    training-set sizes every seed counts with its mean over them.
    """
    accuracy = records["measure"] == "test_accuracy"
    rises = {f"rise, {name} (rho={rho:g})": is_rise(records, name.lower(), rho) for name in ("full", "LoRA")}
    shown, plain = {}, {}
    present = set(records["method"].dropna())
    baselines = {method: _baseline(method, present) for method in method_order(present)}
    for method, baseline in baselines.items():
        if method == baseline or baseline not in present:
            continue
        pair = _paired(records[accuracy], method, baseline)
        differences = by_seed(100 * (pair[method] - pair[baseline]))[0]
        mean, half = mean_interval(differences)
        runs = _runs(records, method, baseline)
        name = "test accuracy (points)"
        texts = {"baseline": method_style(baseline).label, name: plus_minus(mean, half, 1) + _of(len(pair), runs)}
        numbers: dict[str, Any] = {"baseline": baseline}
        numbers |= {f"{name} mean": mean, f"{name} half-width": half, f"{name} pairs": len(pair)}
        for name, mask in rises.items():
            pair = _paired(records[mask], method, baseline)
            pair = pair[((pair > 0) & np.isfinite(pair)).all(axis=1)]
            mean, half = mean_interval(by_seed((pair[method] / pair[baseline]).map(math.log))[0])
            low, ratio, high = (math.exp(mean + side * half) for side in (-1, 0, 1))
            few = _of(len(pair), runs)
            texts[name] = NOTHING if math.isnan(ratio) else f"{ratio:.2f} × {interval(low, high)}{few}"
            numbers |= {f"{name} ratio": ratio, f"{name} low": low, f"{name} high": high, f"{name} pairs": len(pair)}
        shown[method_style(method).label], plain[method] = texts, numbers
    return by_row(shown, "method"), by_row(plain, "method")


def _by_method(records: pd.DataFrame, *, log: bool) -> pd.DataFrame:
    """A row a seed, a column a method; logarithms where ``log``, of what is positive."""
    values = records.pivot_table(index="seed", columns="method", values="value")
    return values.where(values > 0).map(math.log, na_action="ignore") if log else values


def _runs(records: pd.DataFrame, method: str, baseline: str) -> int:
    """Runs of two methods that could be paired, those that diverged among them."""
    runs = records[records["measure"].isin(["train_loss", DIVERGED]) & records["method"].isin([method, baseline])]
    return len(runs.drop_duplicates(["train_size", "seed"]))


def _of(pairs: int, runs: int) -> str:
    """How many pairs there are, where runs are missing."""
    return f" ({pairs} of {runs} pairs)" if 0 < pairs < runs else ""


def _paired(records: pd.DataFrame, method: str, baseline: str) -> pd.DataFrame:
    values = records.pivot_table(index=["train_size", "seed"], columns="method", values="value")
    return values.reindex(columns=[method, baseline]).dropna()


def _baseline(method: str, present: set[str]) -> str:
    """LoRA, at the same rank in a study of ranks; full fine-tuning for SAM over all weights."""
    if method == "sam" and "full" in present:
        return "full"
    rank = re.search(r"_r\d+$", method)
    at_rank = f"lora{rank[0]}" if rank else ""
    return at_rank if at_rank in present else "lora"


def cost_table(records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cost of a step by method, absolute and relative to LoRA."""
    measures = ("gradient_passes", "step_flops", "trainable_parameters", "step_seconds", "peak_memory_bytes")
    medians = records[records["measure"].isin(measures)].groupby(["method", "measure"])["value"].median().unstack()
    medians = medians.reindex(columns=list(measures))
    shown, plain = {}, {}
    for method in method_order(medians.index):
        row = medians.loc[method]
        ratios = row / medians.loc["lora"] if "lora" in medians.index else row * math.nan
        shown[method_style(method).label] = {
            "gradient passes": _number(row["gradient_passes"], 0 if row["gradient_passes"] % 1 == 0 else 2),
            "trainable weights": _number(row["trainable_parameters"], 0),
            "MFLOP a step": _number(row["step_flops"] / 1e6, 1),
            "FLOPs over LoRA": _number(ratios["step_flops"], 2),
            "ms a step": _number(1e3 * row["step_seconds"], 1),
            "over LoRA": _number(ratios["step_seconds"], 2),
            "peak MiB": _number(row["peak_memory_bytes"] / 2**20, 1),
            "memory over LoRA": _number(ratios["peak_memory_bytes"], 2),
        }
        plain[method] = row.to_dict() | {
            "step_over_lora": ratios["step_seconds"],
            "memory_over_lora": ratios["peak_memory_bytes"],
        }
    return by_row(shown, "method"), by_row(plain, "method")


def agreement_table(records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How the eigensolvers agree: residuals, and the largest relative difference from Lanczos among resolved pairs."""
    chosen = records[records["measure"].isin(["hessian_eigenvalue", "hessian_residual"])]
    keys = ["method", "train_size", "seed", "index"]
    values, residuals = (
        chosen[chosen["measure"] == measure].pivot_table(index=keys, columns="algorithm", values="value")
        for measure in ("hessian_eigenvalue", "hessian_residual")
    )
    lanczos = values["lanczos"] if "lanczos" in values else pd.Series(math.nan, values.index)
    plain, shown = {}, {}
    for algorithm in [name for name in ALGORITHMS if name in values]:
        found = values[algorithm].dropna()
        residual = residuals.reindex(index=found.index, columns=[algorithm])[algorithm].dropna()
        resolved = found[residual.reindex(found.index) <= CONVERGED]
        row = {
            "eigenpairs": len(found),
            "largest relative difference from Lanczos": (resolved / lanczos[resolved.index] - 1).abs().max(),
            "median residual": residual.median(),
            "largest residual": residual.max(),
        }
        within = f"residual at most {CONVERGED:g}"
        share = (residual <= CONVERGED).mean()
        plain[algorithm] = row | {within: share}
        texts = {name: _scientific(value) for name, value in row.items()}
        texts |= {"eigenpairs": str(len(found)), within: _number(100 * share, 1, " %")}
        shown[algorithm.replace("_", " ")] = texts
    return by_row(shown, "algorithm"), by_row(plain, "algorithm")


def pyhessian_table(records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cell that PyHessian measured, eigenvalue by eigenvalue, beside the other algorithms."""
    values = records[records["measure"] == "hessian_eigenvalue"].pivot_table(
        index=["method", "train_size", "seed", "index"], columns="algorithm", values="value"
    )
    values = values.reindex(columns=list(ALGORITHMS)).dropna(subset="pyhessian").reset_index()
    shown, plain = [], []
    for row in values.to_dict("records"):
        difference = abs(row["pyhessian"] / row["lanczos"] - 1) if row["lanczos"] else math.nan
        plain.append(row | {"relative_difference": difference})
        shown.append(
            {"run": f"{method_style(row['method']).label}, seed {row['seed']}, {row['train_size']} examples"}
            | {"k": str(row["index"])}
            | {name.replace("_", " "): _number(row[name], 4) for name in ALGORITHMS}
            | {"PyHessian against Lanczos": _scientific(difference)}
        )
    return pd.DataFrame(shown), pd.DataFrame(plain)


def said(shown: pd.DataFrame, plain: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A table without the columns in which no row says anything: what a study does not measure.

    >>> texts, numbers = said(pd.DataFrame({"a": ["1"], "b": ["–"]}), pd.DataFrame({"a": [1.0], "b mean": [None]}))
    >>> list(texts), list(numbers)
    (['a'], ['a'])
    """
    silent = [name for name in shown.columns if len(shown) and (shown[name] == NOTHING).all()]
    numbers = [
        column
        for column in plain.columns
        if plain[column].isna().all() and any(str(column).startswith(name) for name in silent)
    ]
    return shown.drop(columns=silent), plain.drop(columns=numbers)


def write_tables(tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], folder: Path) -> None:
    """Write each (text, numbers) pair as NAME.md, NAME.tex and NAME.csv; a table without rows leaves no file."""
    for name, (shown, plain) in tables.items():
        texts = {"md": markdown_table(shown), "tex": _latex(shown), "csv": plain.to_csv(index=False)}
        for suffix, text in texts.items():
            if shown.empty:
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)
                continue
            write_atomically(folder / f"{name}.{suffix}", partial(write_text, text))


def significant(value: float | None) -> str:
    """Three significant digits; a dash for what is undefined."""
    if value is None or math.isnan(value):
        return NOTHING
    return UNBOUNDED if math.isinf(value) else f"{value:.3g}"


def quantity(value: float | None, unit: str | None) -> str:
    """A number with its unit, or the word or dash alone for what is not a number."""
    number = significant(value)
    if number in (NOTHING, UNBOUNDED):
        return number
    return f"{number} ×" if unit == "ratio" else f"{number} {(unit or '').replace(NATS, loss_unit())}".rstrip()


def interval(low: float | None, high: float | None) -> str:
    """An interval in brackets; ``unbounded`` if it has no ends."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return NOTHING
    if math.isinf(low) or math.isinf(high):
        return UNBOUNDED
    return f"[{low:.3g}, {high:.3g}]"


def plus_minus(mean: float, half: float, digits: int | None = None) -> str:
    """Mean ± half-width; a dash for what is undefined.

    Args:
        mean: The mean.
        half: Half-width of its interval.
        digits: Decimals; by default two significant digits of the half-width, three of a mean that has none.

    >>> plus_minus(0.00123, 0.00045), plus_minus(12.3456, 1.2), plus_minus(3.2e-7, 4e-8), plus_minus(0.5, float("nan"))
    ('0.00123 ± 0.00045', '12.3 ± 1.2', '3.20e-07 ± 4.0e-08', '0.500 ± –')
    """
    if math.isnan(mean):
        return NOTHING
    if digits is None:
        last = half if half > 0 else abs(mean) / 10  # NaN is not above 0
        digits = max(0, 1 - math.floor(math.log10(last))) if last > 0 and math.isfinite(last) else 3
    if digits > _MOST_DECIMALS:
        size = max(0, math.floor(math.log10(abs(mean))) - math.floor(math.log10(half)) + 1) if mean and half > 0 else 2
        return f"{mean:.{size}e} ± {NOTHING if math.isnan(half) else f'{half:.1e}'}"
    return f"{mean:.{digits}f} ± {NOTHING if math.isnan(half) else f'{half:.{digits}f}'}"


def by_row(rows: Mapping[str, Mapping[str, Any]], name: str) -> pd.DataFrame:
    """One row a method or algorithm."""
    return pd.DataFrame([{name: key} | dict(row) for key, row in rows.items()])


def write_text(text: str, path: Path) -> None:
    """Write a text; for `write_atomically`."""
    path.write_text(text)


def _number(value: Any, digits: int, unit: str = "") -> str:
    return NOTHING if math.isnan(value) else f"{value:,.{digits}f}{unit}"


def _scientific(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.1e}"


def markdown_table(frame: pd.DataFrame) -> str:
    """A table in Markdown."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "".join("| " + " | ".join(_markdown_cell(cell) for cell in line) + " |\n" for line in lines)


def _markdown_cell(text: str) -> str:
    """A text on one line, in which Markdown sees no column, no HTML and no emphasis but that of `BOLD`."""
    if _is_bold(text):
        return f"{BOLD}{_markdown_cell(text.removeprefix(BOLD).removesuffix(BOLD))}{BOLD}"
    line = " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")
    return re.sub(r"[*`]|~~|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def _is_bold(text: str) -> bool:
    return text.startswith(BOLD) and text.endswith(BOLD) and len(text) > 2 * len(BOLD)


def escape_latex(text: str) -> str:
    """Text in which LaTeX sees no commands."""
    return "".join(LATEX.get(character, character) for character in text)


def _latex_cell(text: str) -> str:
    if _is_bold(text):
        return rf"\textbf{{{escape_latex(text.removeprefix(BOLD).removesuffix(BOLD))}}}"
    return escape_latex(text)


def _latex(frame: pd.DataFrame) -> str:
    rows = [" & ".join(_latex_cell(str(cell)) for cell in row) + r" \\" for row in frame.to_numpy().tolist()]
    header = " & ".join(escape_latex(str(column)) for column in frame.columns) + r" \\"
    layout = "".join(TEXT_COLUMNS.get(column, "r") for column in frame.columns)
    lines = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", ""])
