"""What the pictures of the loss show, read from their artists."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from analyses.records import records_frame
from reports.figures.alignment_map import plot_alignment_map
from reports.figures.barriers import plot_barriers
from reports.figures.dynamics import plot_dynamics
from reports.figures.prediction import plot_prediction
from reports.figures.profiles import plot_profiles
from reports.figures.surfaces import plot_contours, plot_surfaces
from reports.figures.sweeps import over_rank, over_train_size, plot_sweep
from reports.figures.trajectories import plot_trajectories
from reports.style import method_style
from tests.reports.conftest import RADII, SHARPNESS


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def test_profiles_have_a_panel_a_direction_and_a_line_a_method(records: pd.DataFrame) -> None:
    figure = plot_profiles(records)
    assert [ax.get_title() for ax in figure.axes] == ["inside", "outside"]
    chosen = records[(records["measure"] == "loss_profile") & (records["method"] == "sam")]
    for ax in figure.axes:
        lines = {line.get_label(): line for line in ax.get_lines()}
        assert set(lines) == {method_style(method).label for method in SHARPNESS}
        own = chosen[chosen["subspace"] == ax.get_title()].sort_values("alpha")
        np.testing.assert_allclose(lines["SAM"].get_ydata(), own["value"])
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_contours_share_one_scale(records: pd.DataFrame) -> None:
    figure = plot_contours(records)
    panels = [ax for ax in figure.axes if ax.get_visible() and ax.get_title()]
    assert [ax.get_title().replace("\n", " ") for ax in panels] == [method_style(m).label for m in SHARPNESS]
    levels = [tuple(ax.collections[0].levels) for ax in panels]
    assert len(set(levels)) == 1
    surfaces = records.loc[records["measure"] == "loss_surface", "value"]
    assert levels[0][0] == pytest.approx(surfaces.min()) and levels[0][-1] == pytest.approx(surfaces.max())


def test_surfaces_share_one_height(records: pd.DataFrame) -> None:
    figure = plot_surfaces(records)
    assert [ax.get_title() for ax in figure.axes] == ["SAM", "LoRA", "LoRA-SAM", "Bi-LoRA"]
    assert len({ax.get_zlim() for ax in figure.axes}) == 1


def test_the_prediction_is_the_ratio_at_the_same_run(records: pd.DataFrame) -> None:
    axes = plot_prediction(records).axes
    assert [ax.get_title() for ax in axes] == [f"rho = {RADII[place]:g}" for place in (0, 2, 3, 5)]
    for ax in axes:
        marks = {
            int(line.get_ydata()[0]): line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() != "None"
        }
        assert marks == pytest.approx(dict.fromkeys(range(len(SHARPNESS)), 2.0))
    labels = [tick.get_text() for tick in axes[0].get_yticklabels()]
    assert labels == [method_style(method).label for method in SHARPNESS][::-1]


def test_barriers_fill_the_lower_triangle(records: pd.DataFrame) -> None:
    ax = plot_barriers(records)
    shown = ax.get_images()[0].get_array()
    count = len(SHARPNESS)
    assert shown.shape == (count - 1, count - 1)
    assert int((~np.isnan(np.ma.filled(shown, np.nan))).sum()) == count * (count - 1) // 2
    assert shown[0, 0] == pytest.approx(100) and shown[-1, 0] == pytest.approx(100 * (count - 1))
    assert len(ax.texts) == count * (count - 1) // 2


def test_dynamics_draws_a_line_for_every_adapter() -> None:
    rows = []
    for method, adapters in {"lora": ["primary"], "bilora": ["primary", "auxiliary"]}.items():
        for seed in range(3):
            base = {"study": "s", "method": method, "seed": seed, "train_size": 10}
            for step in (0, 5, 10):
                for adapter in adapters:
                    angle = {"measure": "angle_to_final", "component": adapter, "subspace": "column", "step": step}
                    rows.append(base | angle | {"value": 90.0 - 9 * step + seed})
                if method == "bilora":
                    rows.append(base | {"measure": "cos_auxiliary_gradient", "step": step, "value": 0.1})
    figure = plot_dynamics(records_frame(rows))
    left, right = figure.axes
    lines = {line.get_label(): line for line in left.get_lines()}
    assert list(lines["Bi-LoRA, auxiliary"].get_xdata()) == [0, 5, 10]
    assert list(lines["LoRA, primary"].get_ydata()) == [91.0, 46.0, 1.0]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "LoRA, primary", "Bi-LoRA, primary", "Bi-LoRA, auxiliary", "Bi-LoRA",
    }  # fmt: skip
    assert "cos" in right.get_ylabel()


def test_trajectories_end_at_the_origin_of_their_panel() -> None:
    rows = []
    for method in ("lora", "bilora"):
        base = {"study": "s", "method": method, "seed": 0, "train_size": 10}
        for step, (alpha, beta) in enumerate([(-2.0, 1.0), (-1.0, 0.5), (0.0, 0.0)]):
            rows.append(base | {"measure": "trajectory", "step": step, "alpha": alpha, "beta": beta})
        for number, share in ((1, 0.7), (2, 0.2)):
            rows.append(base | {"measure": "trajectory_variance", "index": number, "value": share})
        for alpha in (-2.0, 0.0, 1.0):
            for beta in (-1.0, 0.0, 1.0):
                value = 0.1 + alpha**2 + beta**2
                rows.append(base | {"measure": "trajectory_loss", "alpha": alpha, "beta": beta, "value": value})
    figure = plot_trajectories(records_frame(rows))
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["LoRA\n90% of the variance", "Bi-LoRA\n90% of the variance"]
    way, end = panels[0].get_lines()
    assert list(way.get_xdata()) == [-2.0, -1.0, 0.0] and list(way.get_ydata()) == [1.0, 0.5, 0.0]
    assert (end.get_xdata()[0], end.get_ydata()[0]) == (0, 0)


def sweep_records() -> pd.DataFrame:
    rows = []
    for rank in (1, 2, 4):
        for method in (f"lora_r{rank}", f"bilora_r{rank}"):
            for seed in range(2):
                base = {"study": "s", "method": method, "seed": seed, "train_size": 100}
                rows.append(base | {"measure": "adapter_rank", "value": rank})
                rows.append(base | {"measure": "test_accuracy", "value": 0.5 + 0.1 * rank})
                rise = {"measure": "worst_case_rise", "rho": 0.1, "subspace": "full"}
                rows.append(base | rise | {"value": 1.0 / rank + 0.01 * seed})
    return records_frame(rows)


def test_a_rank_sweep_joins_the_variants_into_one_curve_a_method() -> None:
    figure = plot_sweep(over_rank(sweep_records()), rho=0.1, xlabel="rank")
    accuracy, rise = figure.axes
    assert [container.get_label() for container in accuracy.containers] == ["LoRA", "Bi-LoRA"]
    for container in accuracy.containers:
        line = container.lines[0]
        assert list(line.get_xdata()) == [1.0, 2.0, 4.0]
        np.testing.assert_allclose(line.get_ydata(), [60.0, 70.0, 90.0])
    expected = [np.sqrt(one * (one + 0.01)) for one in (1.0, 0.5, 0.25)]  # geometric means
    np.testing.assert_allclose(rise.containers[0].lines[0].get_ydata(), expected)
    assert accuracy.get_xlabel() == "rank"


def test_a_size_sweep_takes_the_training_examples() -> None:
    records = sweep_records().assign(method="lora", train_size=lambda frame: 10 * frame["seed"] + 10)
    swept = over_train_size(records)
    assert set(swept["swept"]) == {10, 20} and set(swept["curve"]) == {"lora"}


def test_alignment_map_marks_what_chance_explains() -> None:
    rows = []
    for layer, share in (("vit.layers.0.q_proj", 0.5), ("vit.layers.1.q_proj", 0.05)):
        for k in (1, 2):
            for seed in (0, 1):
                base = {"study": "s", "method": "bilora", "seed": seed, "train_size": 10, "index": k, "layer": layer}
                for measure, value in (("captured_energy", share + 0.01 * seed), ("captured_energy_null", 0.1)):
                    rows.append(base | {"subspace": "column", "measure": measure, "value": value})
    figure = plot_alignment_map(records_frame(rows))
    panel = next(ax for ax in figure.axes if ax.get_title() == "Bi-LoRA")
    np.testing.assert_allclose(panel.get_images()[0].get_array(), [[0.505, 0.055]] * 2)
    assert sorted(zip(*panel.get_lines()[0].get_data(), strict=True)) == [(1, 0), (1, 1)]
