"""What to bear in mind when the numbers of minima are compared, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

_FITS_DIFFER, _LEAST_LOSS_DIFFERENCE = 1.25, 1e-3
_NORMS_DIFFER = 1.1
_AGREED, _RESOLVED = 0.05, 1e-2
_TRACE_ERROR, _STATIONARY = 0.05, 0.1


def caveats(records: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Sentences on different fits and scales, and on searches and solvers that did not agree or converge.

    Args:
        records: Of a comparison.
        names: Of its minima.
    """
    found = [*_fits(records, names), *_scales(records, names), *_searches(records)]
    found += [*_eigenpairs(records), *_traces(records)]
    return found + [sentence for name in names for sentence in _stationarity(records, name)]


def _fits(records: pd.DataFrame, names: Sequence[str]) -> Iterator[str]:
    losses = _by_name(records, "train_loss", names)
    if len(losses) > 1:
        best, worst = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
        difference = losses[worst] - losses[best]
        # Below 0 a ratio says nothing; there the difference is held against the losses' size.
        scale = losses[best] if losses[best] > 0 else max(abs(loss) for loss in losses.values())
        if difference > max(_LEAST_LOSS_DIFFERENCE, (_FITS_DIFFER - 1) * scale):
            yield (
                f"The minima fit the data differently: the training loss is {losses[best]:.3g} at {best} and "
                f"{losses[worst]:.3g} at {worst}. Fit and flatness trade, so part of a difference in sharpness may be "
                "one in fit; compare at equal training loss."
            )


def _scales(records: pd.DataFrame, names: Sequence[str]) -> Iterator[str]:
    norms = _by_name(records, "weight_norm", names)
    if len(norms) < 2:
        return
    small, large = min(norms, key=norms.__getitem__), max(norms, key=norms.__getitem__)
    if norms[large] > _NORMS_DIFFER * norms[small]:
        yield (
            f"The measured weights differ in size: their norm is {norms[small]:.3g} at {small} and {norms[large]:.3g} "
            f"at {large}. Radii in the weights' own units (l2) mislead across scales; read the relative and adaptive "
            "balls beside them."
        )


def _searches(records: pd.DataFrame) -> Iterator[str]:
    gaps = records[(records["measure"] == "worst_case_gap") & (records["value"] > _AGREED)]
    places = zip(gaps["method"], gaps["ball"], gaps["subspace"], strict=True)
    for (method, ball, space), rho, gap in zip(places, _floats(gaps, "rho"), _floats(gaps, "value"), strict=True):
        yield (
            f"The two searches for the worst case of {method} in the {ball} ball of radius {rho:g} ({space} space) "
            f"differ by {gap:.0%}: its rise may be found too low; allow more passes (worst_case.max_passes)."
        )


def _eigenpairs(records: pd.DataFrame) -> Iterator[str]:
    poor = records[(records["measure"] == "hessian_residual") & (records["value"] > _RESOLVED)]
    for method, own in poor.groupby("method"):
        yield (
            f"{len(own)} of {method}'s Hessian eigenpairs have a relative residual of up to {own['value'].max():.1g}: "
            "those eigenvalues are good to that share only."
        )


def _traces(records: pd.DataFrame) -> Iterator[str]:
    traces = records[records["measure"] == "hessian_trace"]
    for method, trace, error in zip(traces["method"], _floats(traces, "value"), _floats(traces, "stderr"), strict=True):
        if error > _TRACE_ERROR * abs(trace):
            yield (
                f"The trace at {method}, {trace:.3g}, has a standard error of {error:.2g}; allow more products "
                "(spectrum.trace_matvecs)."
            )


def _stationarity(records: pd.DataFrame, name: str) -> Iterator[str]:
    """The first-order rise at the smallest radius against the rise found: a slope is no minimum."""
    own = records[records["method"] == name]
    rises = own[(own["measure"] == "worst_case_rise") & (own["ball"] == "l2") & (own["subspace"] == "full")]
    gradient = _by_name(records, "gradient_norm", [name])
    if len(rises) and len(gradient):
        rho, rise = rises.sort_values("rho").iloc[0][["rho", "value"]].astype(float)
        if rise > 0 and gradient[name] * rho / rise > 1 - _STATIONARY:
            yield (
                f"{name} is not stationary: at the smallest radius, {rho:g}, the slope alone (gradient norm "
                f"{gradient[name]:.3g}) explains the rise there. Train it further, or read its sharpness as that of a "
                "slope."
            )


def _floats(records: pd.DataFrame, column: str) -> list[float]:
    return [float(value) for value in records[column]]


def _by_name(records: pd.DataFrame, measure: str, names: Sequence[str]) -> dict[str, float]:
    chosen = records[records["measure"] == measure].drop_duplicates("method")
    values = dict(zip(chosen["method"], chosen["value"].astype(float), strict=True))
    return {name: values[name] for name in names if name in values}
