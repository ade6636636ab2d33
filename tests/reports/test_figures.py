"""What the figures show, read from their artists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import Collection, LineCollection
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from reports.canvas import figure_of
from reports.figures import draw_all
from reports.figures.accuracy_sharpness import plot_accuracy_sharpness
from reports.figures.alignment import plot_alignment
from reports.figures.carriers import carried, plot_carriers, plot_searches, searches
from reports.figures.eigenvalues import plot_eigenvalues
from reports.figures.forest import log_ratios, plot_forest
from reports.figures.worst_case import plot_worst_case
from reports.style import mean_interval, method_style
from tests.reports.conftest import LAYERS, RADII, RHO, SHARPNESS, made_up_records


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def _container(ax: Axes, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Heights (m,) of a method's marks and ends (m, 2) of their intervals; a gap has no interval."""
    label = method_style(method).label
    line, _, (bars,) = next(one for one in _errorbars(ax) if one.get_label() == label).lines
    ends = [segment[:, 1] for segment in _segments(bars) if len(segment)]
    assert line is not None
    return np.asarray(line.get_ydata()), np.array(ends)


def _errorbars(ax: Axes) -> list[ErrorbarContainer]:
    return [one for one in ax.containers if isinstance(one, ErrorbarContainer)]


def _segments(lines: Collection) -> list[np.ndarray]:
    assert isinstance(lines, LineCollection)
    return [np.asarray(segment) for segment in lines.get_segments()]


def _legend_is_outside(figure: Figure) -> bool:
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    page = figure.bbox
    inside = box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0
    return inside and not any(box.overlaps(ax.get_tightbbox() or page) for ax in figure.axes)


def _shows_all_intervals(ax: Axes) -> bool:
    low, high = sorted(ax.get_ylim())
    ends = np.concatenate([segment[:, 1] for one in _errorbars(ax) for segment in _segments(one.lines[2][0])])
    return bool(low <= ends.min() and ends.max() <= high)


def test_worst_case_has_a_panel_a_method_with_geometric_means(records: pd.DataFrame) -> None:
    figure = plot_worst_case(records, rho=RHO)
    rises = records[(records["measure"] == "worst_case_rise") & (records["method"] == "bilora")]
    panels = {ax.get_title(): ax for ax in figure.axes if ax.get_visible()}
    assert list(panels) == [method_style(method).label for method in SHARPNESS]
    for space, bars in zip(("full", "lora"), _errorbars(panels["Bi-LoRA"]), strict=True):
        line, _, (ends,) = bars.lines
        logs = np.log(rises[(rises["subspace"] == space) & np.isclose(rises["rho"], RHO)]["value"].astype(float))
        centre, half = mean_interval(logs)
        at = RADII.index(RHO)
        assert line is not None and np.asarray(line.get_xdata()) == pytest.approx(RADII)  # no mark is moved aside
        assert np.asarray(line.get_ydata())[at] == pytest.approx(np.exp(centre))
        assert _segments(ends)[at][:, 1] == pytest.approx(np.exp([centre - half, centre + half]))
    assert all(ax.get_yscale() == "log" and _shows_all_intervals(ax) for ax in panels.values())
    (reference,) = [line for line in panels["Bi-LoRA"].lines if line.get_label() == "LoRA"]
    lora = records[(records["measure"] == "worst_case_rise") & (records["method"] == "lora")]
    lora = lora[(lora["subspace"] == "full") & np.isclose(lora["rho"], RADII[0])]["value"].astype(float)
    assert reference.get_ydata()[0] == pytest.approx(np.exp(np.log(lora).mean()))


def test_worst_case_of_one_radius_has_a_row_a_method_and_no_empty_panel(records: pd.DataFrame) -> None:
    one = records[(records["measure"] == "worst_case_rise") & (records["rho"] == RHO)]
    assert [ax.get_title() for ax in plot_worst_case(one, rho=RHO).axes] == ["full space", "LoRA subspace of the run"]
    (ax,) = plot_worst_case(one[one["subspace"] == "full"], rho=RHO).axes
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert labels == [method_style(method).label for method in SHARPNESS][::-1]
    place = labels.index("SAM")
    (dots,) = [dots for dots in ax.collections if place in np.asarray(dots.get_offsets())[:, 1]]
    own = one[(one["method"] == "sam") & (one["subspace"] == "full")]["value"].astype(float)
    np.testing.assert_allclose(np.sort(np.asarray(dots.get_offsets())[:, 0]), np.sort(own))
    assert ax.get_xscale() == "log"


def test_every_radius_has_its_tick_though_subspaces_have_fewer(records: pd.DataFrame) -> None:
    fewer = records[(records["subspace"] != "lora") | (records["rho"] == RHO)]
    figure = plot_worst_case(fewer, rho=RHO)
    expected = sorted(records.loc[records["measure"] == "worst_case_rise", "rho"].unique())
    for ax in figure.axes[: len(SHARPNESS)]:
        assert ax.get_xticks().tolist() == pytest.approx(expected)


def test_worst_case_without_lora_or_with_a_rise_of_zero(records: pd.DataFrame) -> None:
    others = records[records["method"].isin(["full", "sam"])].copy()
    flat = (others["measure"] == "worst_case_rise") & (others["method"] == "sam") & (others["rho"] < 0.02)
    others.loc[flat, "value"] = 0.0
    figure = plot_worst_case(others, rho=RHO)
    sam = figure.axes[1]
    assert sam.get_title() == "SAM" and not any(line.get_label() == "LoRA" for line in sam.lines)
    assert _errorbars(sam)[0].lines[0].get_ydata()[0] == 0  # type: ignore[union-attr]
    assert sam.get_yscale() == "symlog"
    assert _shows_all_intervals(sam)


def test_eigenvalues_are_those_of_lanczos(records: pd.DataFrame) -> None:
    ax = plot_eigenvalues(records)
    chosen = records[(records["measure"] == "hessian_eigenvalue") & (records["algorithm"] == "lanczos")]
    means, ends = _container(ax, "bilora")
    own = chosen[chosen["method"] == "bilora"]
    expected = np.exp(own.assign(log=np.log(own["value"].astype(float))).groupby("index")["log"].mean())
    np.testing.assert_allclose(means, expected.to_numpy())
    assert ax.get_yscale() == "log"
    assert (ends[:, 0] < means).all() and (ends[:, 1] > means).all()
    assert _legend_is_outside(figure_of(ax))
    assert _shows_all_intervals(ax)


def test_alignment_stands_against_null_and_optimum(records: pd.DataFrame) -> None:
    ax = plot_alignment(records)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "1", "2", "3"]
    levels = {one.get_label(): {segment[0, 1] for segment in _segments(one)} for one in ax.collections[-2:]}
    assert levels == {"random subspace (expected)": {0.125}, "optimum (Bi-LoRA)": {0.9}}
    own = records[(records["measure"] == "captured_energy") & (records["method"] == "bilora")]
    means, _ = _container(ax, "bilora")
    assert means[1] == pytest.approx(own[own["layer"].isin(LAYERS[6:12])]["value"].mean())
    assert _legend_is_outside(figure_of(ax))
    assert _shows_all_intervals(ax)


def test_alignment_leaves_a_gap_where_a_block_is_missing(records: pd.DataFrame) -> None:
    gap = records[~(records["layer"].isin(LAYERS[6:12]) & (records["method"] == "bilora"))]
    ax = plot_alignment(gap)
    means, _ = _container(ax, "bilora")
    assert np.isnan(means[1]) and np.isfinite(means).sum() == 3


def test_alignment_of_many_variants_is_left_to_the_map(tmp_path: Path) -> None:
    records = made_up_records(tuple(f"bilora_r{2**power}" for power in range(6)), num_seeds=1)
    drawn = {one.name for one in draw_all(records, rho=RHO, folder=tmp_path, formats=["svg"])}
    assert "alignment_map" in drawn and "alignment" not in drawn


def test_accuracy_against_sharpness_has_a_point_a_run_and_a_mean_a_method(records: pd.DataFrame) -> None:
    figure = plot_accuracy_sharpness(records, rho=RHO)
    (ax,) = figure.axes
    points = [np.array(one.get_offsets(), dtype=float) for one in ax.collections]
    runs, means = points[::2], points[1::2]
    assert [len(one) for one in runs] == [5] * len(SHARPNESS)
    for run, mean in zip(runs, means, strict=True):
        np.testing.assert_allclose(mean[0], [np.exp(np.log(run[:, 0]).mean()), run[:, 1].mean()])
        assert 80 < mean[0][1] < 100
    colours = [to_hex(one.get_facecolor()[0]).upper() for one in ax.collections[1::2]]
    assert colours == [method_style(method).colour for method in SHARPNESS]
    assert _legend_is_outside(figure)


def test_sizes_of_the_training_set_have_panels_of_their_own(records: pd.DataFrame) -> None:
    larger = records.assign(train_size=200)
    figure = plot_accuracy_sharpness(pd.concat([records, larger], ignore_index=True), rho=RHO)
    assert [ax.get_title() for ax in figure.axes] == ["100 training examples", "200 training examples"]
    assert all(len(ax.collections) == 2 * len(SHARPNESS) for ax in figure.axes)


def test_draw_all_writes_files_with_captions_that_name_the_method(records: pd.DataFrame, tmp_path: Path) -> None:
    few = records[records["method"].isin(["lora", "bilora"])]
    figures = draw_all(few, rho=RHO, folder=tmp_path)
    over_seeds = [
        "forest",
        "worst_case_rise",
        "carriers",
        "eigenvalues",
        "alignment",
        "alignment_map",
        "accuracy_sharpness",
    ]
    pictures = ["profiles", "contours", "surfaces", "prediction", "barriers"]
    assert [one.name for one in figures] == over_seeds + pictures
    for one in figures:
        assert one.path.is_file() and one.path.with_suffix(".pdf").is_file()
        assert ("n = 5 seeds" in one.caption) == (one.name in over_seeds)
    captions = {one.name: one.caption for one in figures}
    assert "Geometric means" in captions["worst_case_rise"]
    assert "two independent searches" in captions["worst_case_rise"] and "lower bound" in captions["worst_case_rise"]
    assert "geometric means" in captions["forest"] and "lower bound" in captions["forest"]
    assert not plt.get_fignums()


def test_carriers_are_those_of_the_judged_radius(records: pd.DataFrame) -> None:
    effective, largest = plot_carriers(carried(records, rho=RHO)).axes
    labels = [tick.get_text() for tick in effective.get_yticklabels()]
    marks = {int(line.get_ydata()[0]): line.get_xdata()[0] for line in effective.lines if len(line.get_xdata()) == 1}
    assert marks[labels.index("SAM")] == pytest.approx(1.1) and marks[labels.index("LoRA")] == pytest.approx(12.0)
    parts = {int(line.get_ydata()[0]): line.get_xdata()[0] for line in largest.lines if len(line.get_xdata()) == 1}
    assert parts[labels.index("SAM")] == pytest.approx(0.97)
    assert carried(records, rho=0.3).empty


def test_searches_have_a_dot_a_ball(records: pd.DataFrame) -> None:
    known = records.assign(num_passes=records["value"].where(records["measure"] == "worst_case_rise").notna() * 235.0)
    rises = known["measure"] == "worst_case_rise"
    known.loc[rises & (known["subspace"] == "full"), "ball"] = "l2"
    gap, passes = plot_searches(searches(known), known).axes
    assert sum(len(dots.get_offsets()) for dots in gap.collections) == len(searches(known)) == 9 * 5 * len(RADII)
    assert {float(x) for dots in gap.collections for x in np.asarray(dots.get_offsets())[:, 0]} == {1.0}
    assert {float(x) for dots in passes.collections for x in np.asarray(dots.get_offsets())[:, 0]} == {235.0}


def test_forest_has_every_run_and_geometric_means_of_paired_ratios(records: pd.DataFrame) -> None:
    ratios = log_ratios(records, rho=RHO)
    rises = records[(records["measure"] == "worst_case_rise") & (records["subspace"] == "full")]
    rises = rises[np.isclose(rises["rho"], RHO)].pivot_table(index="seed", columns="method", values="value")
    expected = np.log(rises["bilora"] / rises["lora"])
    own = ratios[(ratios["method"] == "bilora") & (ratios["measure"] == "log_ratio_to_lora_of_worst_case_rise")]
    np.testing.assert_allclose(own.set_index("seed")["value"].astype(float), expected)
    assert "lora" not in set(ratios["method"])
    figure = plot_forest(ratios)
    rise, fit, test = figure.axes
    labels = [tick.get_text() for tick in rise.get_yticklabels()]
    assert labels == [method_style(method).label for method in SHARPNESS if method != "lora"][::-1]
    place = labels.index("Bi-LoRA")
    (dots,) = [one for one in rise.collections if place in np.asarray(one.get_offsets())[:, 1]]
    np.testing.assert_allclose(np.sort(np.asarray(dots.get_offsets())[:, 0]), np.sort(np.exp(expected)))
    (mark,) = [line for line in rise.lines if line.get_marker() == "*"]
    assert mark.get_xdata()[0] == pytest.approx(np.exp(expected.mean()))
    assert len(fit.collections) == len(test.collections) == len(labels)
    assert log_ratios(records[records["method"] != "lora"], rho=RHO).empty


def test_draw_all_leaves_out_what_has_no_records(tmp_path: Path) -> None:
    records = made_up_records(("bilora",), num_seeds=1)
    absent = ["captured_energy", "loss_profile", "loss_surface", "quadratic_rise", "loss_barrier"]
    present = records[~records["measure"].isin(absent)]
    drawn = draw_all(present, rho=0.3, folder=tmp_path, formats=["svg"])
    assert [one.name for one in drawn] == ["worst_case_rise", "eigenvalues"]  # nothing of rho = 0.3 is recorded
    assert "one seed has no interval" in drawn[0].caption
    assert draw_all(records.iloc[:0], rho=RHO, folder=tmp_path) == []
