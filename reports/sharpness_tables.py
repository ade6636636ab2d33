"""Tables of sharpness: three measures side by side, how exact the worst case is, and balls of other shapes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyses.records import is_rise
from analyses.records.seeds import seed_means
from reports.style import mean_interval, method_order, method_style
from reports.tables import NOTHING, by_row, plus_minus

Tables = tuple[pd.DataFrame, pd.DataFrame]
HALF = 0.5
"""Share of the rise from which one example counts as carrying it."""


def measures_table(records: pd.DataFrame, *, rho: float) -> Tables:
    """Worst case, mean of the examples' own worst cases and average case, and how few examples carry the first.

    Over the whole weight space, in the l2 ball of the claims' radius: mean ± half-width of the 95 % interval over
    seeds, each with its mean over the training-set sizes.
    """
    here = _of_full_l2_ball(records)
    here = here[np.isclose(here["rho"].astype(float), rho)]
    columns = {
        "worst case": (here["measure"] == "worst_case_rise", 1.0, None),
        "effective examples": (here["measure"] == "effective_examples", 1.0, 1),
        "largest example (%)": ((here["measure"] == "largest_share") & (here["index"] == 1), 100.0, 0),
        "five largest (%)": ((here["measure"] == "largest_share") & (here["index"] == 5), 100.0, 0),
        "mean of own worst cases": (here["measure"] == "own_worst_case_rise", 1.0, None),
        "average case": (here["measure"] == "average_case_rise", 1.0, None),
        "SAM's one step": (here["measure"] == "one_step_rise", 1.0, None),
    }
    shown, plain = {}, {}
    for method in method_order(here.loc[here["measure"] == "own_worst_case_rise", "method"]):
        own = here["method"] == method
        texts: dict[str, str] = {}
        numbers: dict[str, float] = {}
        for name, (mask, scale, digits) in columns.items():
            chosen = here[own & mask.fillna(False)]
            mean, half = mean_interval(scale * seed_means(chosen))
            texts[name] = plus_minus(mean, half, digits)
            numbers |= {f"{name} mean": mean, f"{name} half-width": half}
            if chosen["stderr"].notna().any():  # of the estimate at one minimum, beside the spread over runs
                numbers[f"{name} median stderr"] = float(chosen["stderr"].median())
        sample = float(here.loc[own & (here["measure"] == "own_worst_case_examples"), "value"].astype(float).median())
        texts["examples in that mean"] = NOTHING if np.isnan(sample) else f"{sample:.0f}"
        shown[method_style(method).label], plain[method] = texts, numbers | {"examples in that mean": sample}
    return by_row(shown, "method"), by_row(plain, "method")


def search_table(records: pd.DataFrame) -> Tables:
    """How far two independent searches differ, by ball, space and radius."""
    gaps = records[records["measure"] == "worst_case_gap"]
    rises = records[records["measure"] == "worst_case_rise"]
    converged = records[records["measure"] == "worst_case_converged"]
    keys = ["ball", "subspace", "rho"]
    shown, plain = [], []
    for key, of_ball in gaps.groupby(keys):
        gap = of_ball["value"]
        passes = rises.loc[_same(rises, keys, key), "num_passes"]
        agreed = converged.loc[_same(converged, keys, key), "value"]
        where = dict(zip(keys, key, strict=True))
        numbers = {
            "minima": len(gap),
            "median gap": gap.median(),
            "95th percentile": gap.quantile(0.95),
            "largest gap": gap.max(),
            "below 5 %": (gap < 0.05).mean(),
            "agreed": agreed.mean(),
            "median passes": passes.median(),
        }
        plain.append(where | numbers)
        shown.append(
            {"ball": where["ball"], "space": where["subspace"], "rho": f"{where['rho']:g}", "minima": str(len(gap))}
            | {name: _percent(numbers[name], 1) for name in ("median gap", "95th percentile", "largest gap")}
            | {name: _percent(numbers[name], 0) for name in ("below 5 %", "agreed")}
            | {"median passes": NOTHING if passes.isna().all() else f"{passes.median():.0f}"}
        )
    return pd.DataFrame(shown), pd.DataFrame(plain)


def _percent(share: float, digits: int) -> str:
    return NOTHING if np.isnan(share) else f"{100 * share:.{digits}f} %"


def ball_table(records: pd.DataFrame) -> Tables:
    """Worst-case rises in the balls of other shapes; nothing in a study of the absolute l2 ball alone."""
    rises = records[(records["measure"] == "worst_case_rise") & ~is_rise(records)]
    shown, plain = {}, {}
    for method in method_order(rises["method"]):
        texts: dict[str, str] = {}
        numbers: dict[str, float] = {}
        for (ball, rho), chosen in rises.groupby(["ball", "rho"]):
            mean, half = mean_interval(seed_means(chosen[chosen["method"] == method]))
            name = f"{ball} (rho={rho:g})"
            texts[name] = plus_minus(mean, half)
            numbers |= {f"{name} mean": mean, f"{name} half-width": half}
        shown[method_style(method).label], plain[method] = texts, numbers
    return by_row(shown, "method"), by_row(plain, "method")


def few_examples(records: pd.DataFrame, *, rho: float) -> str:
    """A sentence on the minima whose worst case a single example carries; empty without records of it."""
    here = _of_full_l2_ball(records)
    shares = here[(here["measure"] == "largest_share") & (here["index"] == 1).fillna(False)]
    shares = shares[np.isclose(shares["rho"].astype(float), rho)]
    if shares.empty:
        return ""
    carried = shares[shares["value"] > HALF]
    if carried.empty:
        return f"At rho = {rho:g} no example carries more than half of a worst-case rise."
    counts = [
        f"{method_style(method).label} {(carried['method'] == method).sum()} of {(shares['method'] == method).sum()}"
        for method in method_order(carried["method"])
    ]
    return (
        f"At rho = {rho:g} a single example carries more than half of the worst-case rise at {len(carried)} of "
        f"{len(shares)} minima ({', '.join(counts)}): there the worst case is a statement about that example. The mean "
        "of the examples' own worst cases and the average case speak of all."
    )


def _of_full_l2_ball(records: pd.DataFrame) -> pd.DataFrame:
    return records[(records["ball"].fillna("l2") == "l2") & (records["subspace"] == "full")]


def _same(records: pd.DataFrame, keys: list[str], values: tuple[object, ...]) -> pd.Series:
    return (records[keys] == pd.Series(dict(zip(keys, values, strict=True)))).all(axis=1)
