"""Figures of a comparison: worst cases, spectra, paths and the plane through the minima."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from reports.canvas import Canvas, grid, legend_below, legend_of, one_axes, panels
from reports.figures.rows import rounded
from reports.figures.surfaces import loss_grid
from reports.scales import loss_scale
from reports.style import ONE_COLUMN, TWO_COLUMNS, method_order, method_style, plot_context
from reports.units import loss_unit

UNITS = {
    "l2": "rho (norm of the change)",
    "relative": "rho (norm over the weights' norm)",
    "elementwise": "rho (changes over the weights' sizes)",
    "filter": "rho (changes over the rows' norms)",
}
_MOST_PANELS = 10


def plot_rises(records: pd.DataFrame, *, ball: str = "l2", ax: Axes | None = None) -> Axes:
    """Worst-case rise over the radius, a line a minimum, both axes logarithmic.

    Args:
        records: Of a comparison.
        ball: Shape, in whose units the radii are.
        ax: Where to draw; default a new figure.
    """
    ax = one_axes(ax, (ONE_COLUMN, 2.6))
    chosen = records[(records["measure"] == "worst_case_rise") & (records["ball"] == ball)]
    chosen = chosen[chosen["subspace"] == "full"].sort_values("rho")
    for name in method_order(chosen["method"]):
        own, style = chosen[chosen["method"] == name], method_style(name)
        ax.plot(
            own["rho"], own["value"], color=style.colour, marker=style.marker, ls=style.line, label=style.drawn,
            ms=style.marker_size,
        )  # fmt: skip
    ax.set_xscale("log")
    if len(chosen) and (chosen["value"] > 0).all():
        ax.set_yscale("log")
        rounded(ax.yaxis)
    radii = sorted(chosen["rho"].unique())
    ax.set_xticks(radii, [f"{radius:g}" for radius in radii], minor=False)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(UNITS[ball])
    ax.set_ylabel(f"worst-case loss rise ({loss_unit()})")
    return ax


def plot_balls(records: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """`plot_rises` in a panel for every shape of ball.

    Args:
        records: Of a comparison.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    there = set(records.loc[records["measure"] == "worst_case_rise", "ball"])
    balls = [ball for ball in UNITS if ball in there]
    with plot_context():
        canvas, axes = grid(1, len(balls), (TWO_COLUMNS, 2.6), canvas, sharey=True)
        for ax, ball in zip(axes[0], balls, strict=True):
            plot_rises(records, ball=ball, ax=ax)
            ax.set_title(f"{ball} ball")
            ax.set_ylabel(f"worst-case loss rise ({loss_unit()})" if ax is axes[0, 0] else "")
        _legend(canvas, axes[0, 0])
    return canvas


def plot_density(records: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """Density of the Hessian's eigenvalues with its standard error over probes, six decades of it.

    Args:
        records: Of a comparison.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    chosen = records[records["measure"] == "spectral_density"]
    names = method_order(chosen["method"])
    with plot_context():
        canvas, axes = panels(len(names), 3, 1.5, canvas, sharex=True, sharey=True)
        for ax, name in zip(axes, names, strict=True):
            own, style = chosen[chosen["method"] == name], method_style(name)
            at, height = own["alpha"].to_numpy(float), own["value"].to_numpy(float)
            error = own["stderr"].to_numpy(float)
            ax.fill_between(at, np.maximum(height - error, 1e-12), height + error, color=style.colour, alpha=0.25, lw=0)
            ax.plot(at, height, color=style.colour)
            ax.set_title(style.drawn)
            ax.set_yscale("log")
        top = chosen["value"].max()
        axes[0].set_ylim(top * 1e-6, 2 * top)
        canvas.supxlabel("Hessian eigenvalue", fontsize=8)
        canvas.supylabel("density", fontsize=8)
    return canvas


def plot_paths(records: pd.DataFrame, *, canvas: Canvas | None = None) -> Canvas:
    """Loss along the straight line (dotted) and the trained curve (solid) between minima, a panel a pair.

    Args:
        records: Of a comparison.
        canvas: Figure or subfigure to draw in; default a new figure.
    """
    chosen = records[records["measure"] == "path_loss"]
    pairs = list(dict.fromkeys(zip(chosen["method"], chosen["other"], strict=True)))[:_MOST_PANELS]
    with plot_context():
        canvas, axes = panels(len(pairs), 5, 1.35, canvas, sharex=True)
        for ax, (a, b) in zip(axes, pairs, strict=True):
            own = chosen[(chosen["method"] == a) & (chosen["other"] == b)]
            for kind, line in {"straight line": ":", "curve": "-"}.items():
                along = own[own["subspace"] == kind].sort_values("alpha")
                if len(along):
                    ax.plot(along["alpha"], along["value"], color="0.2", ls=line, label=kind)
            for place, name in ((0.0, a), (1.0, b)):
                end = own.loc[own["alpha"] == place, "value"].iloc[0]
                style = method_style(name)
                ax.plot(place, end, color=style.colour, marker=style.marker, ms=style.marker_size)
            ax.set_title(f"{method_style(a).drawn} to\n{method_style(b).drawn}")
            ax.set_xlabel("position")
        canvas.supylabel(f"training loss ({loss_unit()})", fontsize=8)
        _legend(canvas, axes[0])
    return canvas


def plot_plane(records: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """The loss over the plane of the minima's first two principal components, and the minima on it.

    Args:
        records: Of a comparison.
        ax: Where to draw; default a new figure.
    """
    grid = loss_grid(records[records["measure"] == "plane_loss"])
    there = records[records["measure"] == "plane_minimum"].set_index("method")
    share = records.loc[records["measure"] == "plane_variance", "value"].sum()
    scale = loss_scale(grid.to_numpy())
    levels = scale.levels()
    with plot_context():
        given, ax = ax, one_axes(ax, (ONE_COLUMN, 3.1))
        filled = ax.contourf(
            grid.index, grid.columns, scale.cut(grid).T, levels=levels, norm=scale.norm(), cmap="viridis", extend="both"
        )
        for name in method_order(there.index):
            style = method_style(name)
            at = there.loc[[name]]
            ax.plot(
                at["alpha"], at["beta"], color=style.colour, marker=style.marker, ls="none",
                ms=style.marker_size + 2, mec="white", mew=0.7, label=style.drawn,
            )  # fmt: skip
        ax.set_aspect("equal")
        ax.set_title(f"{share:.0%} of the variance")
        ax.set_xlabel("first principal component")
        ax.set_ylabel("second")
        ax.figure.colorbar(filled, ax=ax, label=f"training loss ({loss_unit()})", ticks=levels[::4], format="{x:.2g}")
        legend_of(ax, given, _columns(ax))
    return ax


def _legend(canvas: Canvas, ax: Axes) -> None:
    legend_below(canvas, [ax], _columns(ax))


def _columns(ax: Axes) -> int:
    return min(5, max(1, len(ax.get_legend_handles_labels()[1])))
