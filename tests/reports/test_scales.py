"""Pictures of losses of all kinds: logarithmic where none is negative, and plain where some are."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm

from reports.canvas import figure_of
from reports.charts.surfaces import surfaces_chart
from reports.comparison.figures import plot_plane
from reports.comparison.page import comparison_plans
from reports.figures import draw_all
from reports.figures.profiles import plot_profiles
from reports.figures.rows import draw_row, label_rows, readable
from reports.figures.surfaces import plot_contours, plot_surfaces
from reports.figures.trajectories import plot_trajectories
from reports.scales import loss_scale
from tests.reports.conftest import RHO

GRID = np.linspace(-1, 1, 5)


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def shifted(records: pd.DataFrame, by: float) -> pd.DataFrame:
    """The same pictures of a loss that lies lower, as that of a density may."""
    pictured = records["measure"].isin(["loss_surface", "loss_profile"])
    return records.assign(value=records["value"].where(~pictured, records["value"] - by))


def test_levels_and_heights_keep_to_the_losses() -> None:
    positive, mixed = loss_scale([0.0, 0.01, 10.0, np.nan]), loss_scale([-2.0, 0.0, 3.0, np.inf])
    assert positive.logarithmic and not mixed.logarithmic
    assert np.allclose(positive.heights([0.0, 0.01, 1.0, 100.0]), [-2, -2, 0, 1])
    assert np.allclose(mixed.heights([-5.0, 1.0, np.inf]), [-2, 1, 3])
    for scale in (positive, mixed, loss_scale([0.0, 0.0]), loss_scale([-3.0])):
        levels = scale.levels()
        assert (np.diff(levels) > 0).all() and levels[0] == scale.low and levels[-1] > scale.high
    with pytest.raises(ValueError, match="some that are finite"):
        loss_scale([np.nan, np.inf])


@pytest.mark.parametrize("by", [0.0, 1.0, 100.0])
def test_surfaces_are_drawn_whatever_the_losses_sign(records: pd.DataFrame, by: float) -> None:
    moved = shifted(records, by)
    contours = plot_contours(moved)
    norms = {type(ax.collections[0].norm) is LogNorm for ax in contours.axes if ax.has_data() and ax.collections}
    assert (True in norms) == (by == 0)
    assert ("log10" in plot_surfaces(moved).texts[0].get_text()) == (by == 0)
    chart = surfaces_chart(moved)
    assert chart is not None
    heights = np.array(chart.plots[0]["data"][0]["customdata"], dtype=float)
    losses = moved.loc[(moved["measure"] == "loss_surface") & (moved["method"] == "full"), "value"]
    assert heights.min() == pytest.approx(losses.min()) and heights.max() == pytest.approx(losses.max())


def test_profiles_of_negative_losses_keep_all_points(records: pd.DataFrame) -> None:
    axes = plot_profiles(shifted(records, 1.0)).axes
    assert axes[0].get_yscale() == "linear"
    assert all(len(line.get_xdata()) == 7 for line in axes[0].lines)
    assert plot_profiles(records).axes[0].get_yscale() == "log"


def test_pictures_without_a_finite_loss_are_left_out(records: pd.DataFrame, tmp_path: pytest.TempPathFactory) -> None:
    pictured = records["measure"].isin(["loss_surface", "loss_profile"])
    endless = records.assign(value=records["value"].where(~pictured, np.inf))
    drawn = {one.name for one in draw_all(endless, rho=RHO, folder=tmp_path, formats=["png"])}  # type: ignore[arg-type]
    assert "barriers" in drawn and not drawn & {"profiles", "contours", "surfaces"}


@pytest.mark.parametrize("lowest", [0.1, 0.0, -2.0])
def test_planes_are_drawn_whatever_the_losses_sign(lowest: float) -> None:
    losses = [{"alpha": a, "beta": b, "value": lowest + a * a + b * b} for a in GRID for b in GRID]
    plane = pd.DataFrame([{"measure": "plane_loss"} | row for row in losses])
    corners = [
        {"measure": "plane_minimum", "method": name, "alpha": 0.1 * i, "beta": 0.0} for i, name in enumerate("abc")
    ]
    share = [{"measure": "plane_variance", "index": 1, "value": 1.0}]
    records = pd.concat([plane, pd.DataFrame([*corners, *share])], ignore_index=True)
    ax = plot_plane(records)
    assert (type(ax.collections[0].norm) is LogNorm) == (lowest >= 0)
    figure_of(ax).draw_without_rendering()
    way = records.replace({"plane_loss": "trajectory_loss", "plane_variance": "trajectory_variance"})
    way = way[way["measure"] != "plane_minimum"].assign(method="lora", train_size=1, step=0)
    way = pd.concat([way, way.iloc[:2].assign(measure="trajectory")], ignore_index=True)
    plot_trajectories(way)


def test_a_plane_without_a_finite_loss_is_left_out() -> None:
    columns = ["measure", "subspace", "algorithm", "method", "other", "ball", "rho", "index", "alpha", "beta"]
    rows = [{"measure": "plane_loss", "alpha": 0.0, "beta": 0.0, "value": np.nan}]
    plans = {plan.name: plan for plan in comparison_plans(pd.DataFrame(rows, columns=[*columns, "value"]))}
    assert plans["plane"].chosen.empty


@pytest.mark.parametrize("value", [0.1, 0.05, 0.19354397880417595, 0.3, 1e-7])
def test_an_axis_of_one_value_has_room_and_numbers(value: float) -> None:
    """The geometric mean of a number differs from it by rounding, between which there is no axis."""
    _, ax = plt.subplots()
    draw_row(ax, pd.Series([value]), "lora", 0)
    readable(ax)
    low, high = ax.get_xlim()
    ticks = ax.get_xticks()
    assert low < 0.8 * value and high > 1.25 * value and ((ticks > low) & (ticks < high)).sum() >= 1


def test_long_names_leave_room_and_stay_apart() -> None:
    _, ax = plt.subplots()
    names = [f"bilora_with_a_very_long_descriptive_name_number_{number}" for number in range(3)]
    label_rows(ax, names)
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert len(set(labels)) == 3 and max(map(len, labels)) <= 30
    ax.set_xlim(0.11, 0.3)
    readable(ax)
    assert 2 <= len(ax.get_xticks()) <= 5
    ax.set_xlim(0.68, 1.55)
    readable(ax)
    assert 1.0 in ax.get_xticks() and len(ax.get_xticks()) >= 3
