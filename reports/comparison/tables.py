"""Tables of a comparison: a column a minimum, and a row a pair of minima."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence

import pandas as pd

from reports.tables import NOTHING, markdown_table, significant

_PERCENT = 100.0
_QUALIFIERS = ("subspace", "component", "ball", "rho", "index", "algorithm")
"""Columns that tell apart what one of the user's measures records at one minimum."""


def summary(records: pd.DataFrame, names: Sequence[str], own: Sequence[str] = ()) -> pd.DataFrame:
    """Plain numbers: a row a quantity, a column a minimum, in the given order; NaN for what was not measured.

    ``own`` names what the user's measures recorded, whose rows come last.
    """
    rows = {label: values for label, values, _ in _quantities(records, names, own)}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=list(names)).astype(float)
    return frame.rename_axis("quantity")


def shown_summary(
    records: pd.DataFrame, names: Sequence[str], own: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The summary as text, with standard errors where there are some, and as plain numbers."""
    lines = []
    for label, values, errors in _quantities(records, names, own):
        cells = [_text(value, error) for value, error in zip(values, errors, strict=True)]
        lines.append({"quantity": label} | dict(zip(names, cells, strict=True)))
    columns = ["quantity", *names]
    return pd.DataFrame(lines, columns=columns), summary(records, names, own).reset_index()


def pairs(records: pd.DataFrame) -> pd.DataFrame:
    """A row a pair: distance in the differing weights, the same over their norm, and barriers (nats, lower bounds)."""
    between = records[records["other"].notna()]
    columns = {
        "distance": between["measure"] == "distance",
        "relative distance": between["measure"] == "relative_distance",
        "barrier, straight line": (between["measure"] == "loss_barrier") & (between["subspace"] == "straight line"),
        "barrier, curve": (between["measure"] == "loss_barrier") & (between["subspace"] == "curve"),
    }
    found = {
        name: between[mask].set_index(["method", "other"])["value"].astype(float)
        for name, mask in columns.items()
        if mask.any()
    }
    frame = pd.DataFrame(found).reset_index() if found else pd.DataFrame(columns=["method", "other", *columns])
    return frame.rename(columns={"method": "a", "other": "b"})


def shown_pairs(records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The pairs as text and as plain numbers."""
    plain = pairs(records)
    shown = plain.copy().astype(object)
    for column in plain.columns[2:]:
        shown[column] = plain[column].map(significant)
    return shown, plain


def as_markdown(records: pd.DataFrame, names: Sequence[str], caveats: Sequence[str], own: Sequence[str] = ()) -> str:
    """Both tables and the caveats as Markdown."""
    parts = [markdown_table(shown_summary(records, names, own)[0])]
    if len(pairs(records)):
        parts.append(markdown_table(shown_pairs(records)[0]))
    parts += ["".join(f"- {sentence}\n" for sentence in caveats)] if caveats else []
    return "\n".join(parts)


def as_html(records: pd.DataFrame, names: Sequence[str], caveats: Sequence[str], own: Sequence[str] = ()) -> str:
    """The same for a notebook, every text escaped."""
    tables = [shown_summary(records, names, own)[0]]
    tables += [shown_pairs(records)[0]] if len(pairs(records)) else []
    notes = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in caveats)
    return "".join(frame.to_html(index=False, escape=True, border=0) for frame in tables) + f"<ul>{notes}</ul>"


def _quantities(
    records: pd.DataFrame, names: Sequence[str], own: Sequence[str]
) -> Iterator[tuple[str, list[float], list[float]]]:
    """Label, values and standard errors by minimum, of all that was measured."""
    measure, full = records["measure"], records["subspace"] == "full"
    first = records["index"] == 1
    lanczos = records["algorithm"] == "lanczos"
    plain = {
        "train loss": (measure == "train_loss", 1.0),
        "train accuracy (%)": (measure == "train_accuracy", _PERCENT),
        "test loss": (measure == "test_loss", 1.0),
        "test accuracy (%)": (measure == "test_accuracy", _PERCENT),
        "gradient norm": (measure == "gradient_norm", 1.0),
        "norm of the measured weights": (measure == "weight_norm", 1.0),
    }
    for label, (mask, scale) in plain.items():
        yield from _row(records, names, label, mask, scale)
    rises = (measure == "worst_case_rise") & full
    order = {"l2": 0, "relative": 1, "elementwise": 2, "filter": 3}
    balls = sorted(
        {*zip(records.loc[rises, "ball"], records.loc[rises, "rho"], strict=True)}, key=lambda b: (order[b[0]], b[1])
    )
    for ball, rho in balls:
        here = (records["ball"] == ball) & (records["rho"] == rho) & full
        yield from _row(records, names, f"worst-case rise, {ball}, rho {rho:g}", here & (measure == "worst_case_rise"))
    for ball, rho in [one for one in balls if one[0] == "l2"][-1:]:
        here = (records["ball"] == ball) & (records["rho"] == rho) & full
        beside = {
            "gap between two searches (%)": (measure == "worst_case_gap", _PERCENT),
            "effective number of examples": (measure == "effective_examples", 1.0),
            "mean of own worst cases": (measure == "own_worst_case_rise", 1.0),
            "average-case rise": (measure == "average_case_rise", 1.0),
        }
        for label, (mask, scale) in beside.items():
            yield from _row(records, names, f"{label}, {ball}, rho {rho:g}", here & mask, scale)
    spectrum = {
        "Hessian eigenvalue of largest magnitude": (measure == "hessian_eigenvalue") & lanczos & first,
        "its relative residual": (measure == "hessian_residual") & lanczos & first,
        "Hessian trace": measure == "hessian_trace",
    }
    for label, mask in spectrum.items():
        yield from _row(records, names, label, mask.fillna(False))
    share = (measure == "alignment_weighted") & (records["subspace"] == "column")
    for component in ("primary", "auxiliary"):
        chosen = share & (records["component"] == component)
        yield from _row(records, names, f"dominant curvature in the {component}'s columns (%)", chosen, _PERCENT)
    for quantity in own:
        for label, mask in _qualified(records, quantity):
            yield from _row(records, names, label, mask)


def _qualified(records: pd.DataFrame, quantity: str) -> Iterator[tuple[str, pd.Series]]:
    """A label and a mask for each number of a quantity at a minimum, told apart by what qualifies it."""
    here = records["measure"] == quantity
    used = [column for column in _QUALIFIERS if records.loc[here, column].notna().any()]
    for values in records.loc[here, used].drop_duplicates().itertuples(index=False):
        mask, parts = here, [quantity]
        for column, value in zip(used, values, strict=True):
            mask = mask & (records[column].isna() if pd.isna(value) else records[column] == value)
            if not pd.isna(value):
                parts.append(f"{column} {value:g}" if isinstance(value, float) else f"{column} {value}")
        yield ", ".join(parts), mask


def _row(
    records: pd.DataFrame, names: Sequence[str], label: str, mask: pd.Series, scale: float = 1.0
) -> Iterator[tuple[str, list[float], list[float]]]:
    chosen = records[mask.fillna(False).astype(bool)].drop_duplicates("method").set_index("method")
    if len(chosen):
        columns = chosen.reindex(list(names))
        yield (
            label,
            (scale * columns["value"]).astype(float).tolist(),
            (scale * columns["stderr"]).astype(float).tolist(),
        )


def _text(value: float, error: float) -> str:
    if math.isnan(value):
        return NOTHING
    return significant(value) if math.isnan(error) else f"{significant(value)} (s.e. {error:.1g})"
