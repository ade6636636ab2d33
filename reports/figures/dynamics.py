"""How the adapters' spaces settle and how the auxiliary lies to the gradient, along training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.canvas import Canvas, grid, legend_below
from reports.figures.sweeps import RANK, over_rank
from reports.ranges import cut, possible
from reports.style import TWO_COLUMNS, mean_interval, method_order, method_style, plot_context

SETTLING = {"primary": ("lora", "lora_sam", "bilora"), "auxiliary": ("bilora",)}
_LINES = {"primary": "-", "auxiliary": "--"}
MOST_BANDS = 8
SHARES = {"primary": ("lora", "lora_sam", "bilora"), "auxiliary": ("bilora", "dual_lora", "random_aux")}


def plot_dynamics(records: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """Angle of the column spaces to where they end, and cos(perturbation, G) of the methods with one.

    Side by side, or above each other with a column a rank where a study has several. More than eight cosines in a
    panel have no bands, which would hide one another.

    Args:
        records: Long-form records with ``angle_to_final`` and ``cos_auxiliary_gradient`` rows.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    facets = _facets(records)
    with plot_context():
        canvas, axes = _grid(2, len(facets), canvas)
        for (title, part), upper, lower in zip(facets, *axes, strict=True):
            angles = part[(part["measure"] == "angle_to_final") & (part["subspace"] == "column")]
            _by_adapter(upper, angles, SETTLING)
            upper.axhline(10, color="0.6", lw=0.7, zorder=0)
            upper.set_title(title)
            cosines = part[part["measure"] == "cos_auxiliary_gradient"]
            methods = method_order(cosines["method"])
            for method in methods:
                own = cosines[cosines["method"] == method]
                _curve(lower, own, method, None, band=len(methods) <= MOST_BANDS)
            lower.axhline(0, color="0.6", lw=0.7, zorder=0)
        axes[0][0].set_ylabel("angle to the\nfinal space (°)")
        axes[1][0].set_ylabel("cos(perturbation,\ngradient)")
        _finish(canvas, [ax for row in axes for ax in row], [*axes[1], *(axes[0] if len(facets) == 1 else [])])
    return canvas


def plot_alignment_training(records: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """Share of the minimum's dominant curvature in the adapters' column spaces at every snapshot; a panel a rank.

    Args:
        records: Long-form records with ``alignment_along_training`` rows.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    shares = records[records["measure"].isin(["alignment_along_training", RANK])]
    facets = _facets(shares)
    with plot_context():
        canvas, (axes,) = _grid(1, len(facets), canvas)
        for (title, part), ax in zip(facets, axes, strict=True):
            _by_adapter(ax, part[part["measure"] == "alignment_along_training"], SHARES)
            ax.set_title(title)
        axes[0].set_ylim(0, None)
        axes[0].set_ylabel("captured share of curvature")
        _finish(canvas, axes, axes)
    return canvas


def _facets(records: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Title and records of each panel: one a rank where a study has three or more, else a single one."""
    swept = over_rank(records)
    ranks = sorted(swept["swept"].dropna().unique())
    if len(ranks) < 3:
        return [("", records)]
    families = swept.assign(method=swept["curve"])
    return [(f"r = {rank:g}", families[families["swept"] == rank]) for rank in ranks]


def _grid(rows: int, facets: int, canvas: Canvas | None) -> tuple[Canvas, list[list[Axes]]]:
    """Axes by row and facet; rows of a single facet stand side by side."""
    if facets == 1:
        canvas, axes = grid(1, rows, (TWO_COLUMNS, 2.7), canvas)
        return canvas, [[ax] for ax in axes[0]]
    size = (TWO_COLUMNS, 0.8 + 1.6 * rows)
    canvas, axes = grid(rows, facets, size, canvas, sharex=True, sharey="row")
    return canvas, [list(row) for row in axes]


def _finish(canvas: Canvas, axes: Sequence[Axes], with_steps: Sequence[Axes]) -> None:
    """Name the horizontal axes, and put one legend for all panels below, for which a figure of its own grows."""
    for ax in with_steps:
        ax.set_xlabel("optimizer step" if len(with_steps) < 3 else "step")
    if isinstance(canvas, Figure):
        labels = {label for ax in axes for label in ax.get_legend_handles_labels()[1]}
        canvas.set_figheight(canvas.get_figheight() + 0.14 * max(0, math.ceil(len(labels) / 3) - 3))
    legend_below(canvas, axes, 3, handlelength=3)


def _by_adapter(ax: Axes, records: pd.DataFrame, shown: Mapping[str, tuple[str, ...]]) -> None:
    """A curve for each of the shown methods' adapters; in a study of variants, for those of all its methods."""
    known = {method for methods in shown.values() for method in methods}
    others = [] if known & set(records["method"]) else method_order(records["method"])
    for adapter, methods in shown.items():
        for method in others or methods:
            own = records[(records["component"] == adapter) & (records["method"] == method)]
            label = f"{method_style(method).drawn}, {adapter}"
            _curve(ax, own, method, label, line=_LINES[adapter])


def _curve(
    ax: Axes,
    own: pd.DataFrame,
    method: str,
    label: str | None,
    *,
    line: str | None = None,
    band: bool = True,
) -> None:
    """Means over the steps, with a band over seeds as far as values are possible."""
    if own.empty:
        return
    steps = sorted(int(step) for step in own["step"].unique())
    summary = [mean_interval(own.loc[own["step"] == step, "value"]) for step in steps]
    style = method_style(method)
    ax.plot(
        steps,
        [mean for mean, _ in summary],
        color=style.colour,
        ls=line or style.line,
        lw=1.1,
        label=label or style.drawn,
    )
    if not band:
        return
    within = possible(own["measure"].iloc[0])
    low, high = (cut([mean + sign * half for mean, half in summary], within) for sign in (-1, 1))
    ax.fill_between(steps, low, high, color=style.colour, alpha=0.15, lw=0)
