"""What the auxiliary's space sees: over radius, rank and training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from analyses.records import records_frame
from reports.figures import draw_all
from reports.figures.dynamics import plot_alignment_training
from reports.figures.numbers import figure_numbers
from reports.figures.recovered import captured_over_rank, plot_capture, plot_recovered, recovered_shares
from reports.style import mean_interval

pytestmark = pytest.mark.usefixtures("svg_alone")

RANKS, RADII, SEEDS = (1, 2, 8), (0.1, 0.2), 3


@pytest.fixture
def swept() -> Iterator[pd.DataFrame]:
    """Bi-LoRA and LoRA at three ranks, three seeds each; the shares are those of `_share`."""
    rows: list[dict[str, Any]] = []
    for rank in RANKS:
        for method in (f"lora_r{rank}", f"bilora_r{rank}"):
            for seed in range(SEEDS):
                cell = {"study": "made-up", "method": method, "seed": seed, "train_size": 100}
                rows += [cell | row for row in _cell(rank, seed, auxiliary=method.startswith("bilora"))]
    yield records_frame(rows)
    plt.close("all")


def _share(rank: int, seed: int) -> float:
    return 0.1 + 0.05 * rank + 0.01 * seed


def _cell(rank: int, seed: int, *, auxiliary: bool) -> Iterator[dict[str, Any]]:
    yield {"measure": "train_loss", "value": 0.1}
    yield {"measure": "adapter_rank", "value": rank}
    share = _share(rank, seed)
    for rho in RADII:
        full = rho * (1 + seed)
        inside = {"auxiliary": share, "random": share / 4} if auxiliary else {}
        for subspace, value in {"full": 1.0, **inside}.items():
            yield {"measure": "worst_case_rise", "rho": rho, "subspace": subspace, "value": value * full}
    for other in ("primary", "gradient", *(["auxiliary"] if auxiliary else [])):
        pooled = {"subspace": "column", "layer": "all", "component": other}
        yield pooled | {"measure": "alignment_weighted", "value": share}
        for k in (0, 1):
            yield pooled | {"measure": "alignment_expected", "index": k, "value": 0.02 * rank if k else 9.0}
            yield pooled | {"measure": "alignment_optimum", "index": k, "value": 0.8 if k else 9.0}
        for step in (0, 10, 20):
            yield pooled | {"measure": "alignment_along_training", "step": step, "value": share * step / 20}


def test_recovered_share_divides_by_the_full_rise_of_the_same_run(swept: pd.DataFrame) -> None:
    shares = recovered_shares(swept)
    assert set(shares["method"]) == {f"bilora_r{rank}" for rank in RANKS}
    assert len(shares) == len(RANKS) * SEEDS * len(RADII) * 2
    own = shares[(shares["method"] == "bilora_r2") & (shares["subspace"] == "auxiliary")]
    np.testing.assert_allclose(own.groupby("seed")["value"].mean(), [_share(2, seed) for seed in range(SEEDS)])


def test_a_flat_loss_has_no_recovered_share(swept: pd.DataFrame) -> None:
    flat = (swept["measure"] == "worst_case_rise") & (swept["method"] == "bilora_r2")
    shares = recovered_shares(swept.assign(value=swept["value"].mask(flat, 0.0)))
    assert set(shares["method"]) == {"bilora_r1", "bilora_r8"}


def test_shares_over_rank_leave_out_the_worst_case_perturbation(swept: pd.DataFrame) -> None:
    chosen = captured_over_rank(swept, rho=0.1)
    assert chosen["value"].max() < 1
    figure = plot_capture(chosen)
    left, right = figure.axes
    lines = {one.get_label(): one.lines[0] for one in left.containers}
    assert set(lines) == {
        "LoRA, primary",
        "LoRA, gradient's top r",
        "Bi-LoRA, auxiliary",
        "Bi-LoRA, primary",
        "Bi-LoRA, gradient's top r",
    }
    expected = [np.mean([_share(rank, seed) for seed in range(SEEDS)]) for rank in RANKS]
    np.testing.assert_allclose(lines["Bi-LoRA, auxiliary"].get_ydata(), expected)
    np.testing.assert_allclose(right.containers[0].lines[0].get_ydata(), expected)
    chance = next(line for line in left.lines if str(line.get_label()).startswith("random"))
    np.testing.assert_allclose(np.asarray(chance.get_ydata()), [0.02 * rank for rank in RANKS])
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["1", "2", "8"]


def test_recovered_over_radius_has_a_curve_a_method(swept: pd.DataFrame) -> None:
    ax = plot_recovered(recovered_shares(swept))
    curves = {one.get_label(): np.asarray(one.lines[0].get_ydata()) for one in ax.containers}
    assert list(curves) == [f"Bi-LoRA, r = {rank}" for rank in RANKS]
    np.testing.assert_allclose(curves["Bi-LoRA, r = 8"], [0.51, 0.51])


def test_alignment_along_training_is_a_curve_an_adapter(swept: pd.DataFrame) -> None:
    (ax,) = plot_alignment_training(swept[swept["method"] == "bilora_r8"]).axes
    curves = {str(line.get_label()): line for line in ax.lines}
    assert set(curves) == {"Bi-LoRA, r = 8, primary", "Bi-LoRA, r = 8, auxiliary"}
    curve = curves["Bi-LoRA, r = 8, auxiliary"]
    np.testing.assert_array_equal(np.asarray(curve.get_xdata()), [0, 10, 20])
    np.testing.assert_allclose(np.asarray(curve.get_ydata()), [0, 0.255, 0.51])


def test_several_ranks_have_a_panel_each_and_share_a_legend(swept: pd.DataFrame) -> None:
    figure = plot_alignment_training(swept)
    assert [ax.get_title() for ax in figure.axes] == [f"r = {rank}" for rank in RANKS]
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["LoRA, primary", "Bi-LoRA, primary", "Bi-LoRA, auxiliary"]
    line = next(line for line in figure.axes[-1].lines if str(line.get_label()).endswith("auxiliary"))
    np.testing.assert_allclose(np.asarray(line.get_ydata()), [0, 0.255, 0.51])
    bottoms = [float(band.get_paths()[0].vertices[:, 1].min()) for ax in figure.axes for band in ax.collections]
    assert min(bottoms) >= 0


def test_every_figure_is_also_a_table(swept: pd.DataFrame, tmp_path: Path) -> None:
    drawn = draw_all(swept, rho=0.1, folder=tmp_path)
    assert {"recovered_sharpness", "captured_rank", "alignment_training"} <= {one.name for one in drawn}
    assert all((tmp_path / f"{one.name}.csv").is_file() for one in drawn)
    table = pd.read_csv(tmp_path / "recovered_sharpness.csv")
    point = table[(table["method"] == "bilora_r8") & (table["subspace"] == "auxiliary") & (table["rho"] == 0.2)]
    mean, half = mean_interval([_share(8, seed) for seed in range(SEEDS)])
    assert point[["mean", "half_width", "n"]].to_numpy().tolist() == [pytest.approx([mean, half, SEEDS])]


def test_figure_numbers_keep_points_apart_that_differ_in_one_dimension(swept: pd.DataFrame) -> None:
    rises = swept[swept["measure"] == "worst_case_rise"]
    numbers = figure_numbers(rises)
    assert (numbers["n"] == SEEDS).all()
    assert len(numbers) == len(RADII) * len(RANKS) * (1 + 3)
