"""Intervals end where values are possible, and ranks come in their order."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from analyses.records import records_frame
from reports.figures.alignment import plot_alignment
from reports.figures.alignment_map import mapped_methods
from reports.figures.carriers import carried, plot_carriers
from reports.figures.numbers import figure_numbers
from reports.figures.sweeps import over_train_size, plot_sweep

SEEDS = range(2)


def wide(measure: str, values: tuple[float, float], **coordinates: object) -> list[dict[str, object]]:
    """Records of two seeds, whose interval is wide."""
    row = {"study": "study", "run": "run", "method": "lora", "train_size": 100, "measure": measure} | coordinates
    return [{**row, "seed": seed, "value": values[seed]} for seed in SEEDS]


@pytest.fixture
def carriers() -> pd.DataFrame:
    ball = {"ball": "l2", "rho": 0.1, "subspace": "full"}
    shares = wide("largest_share", (0.2, 0.9), index=1, **ball)
    return carried(records_frame([*shares, *wide("effective_examples", (1.2, 6.0), **ball)]), rho=0.1)


def test_carriers_stay_among_what_is_possible(carriers: pd.DataFrame) -> None:
    figure = plot_carriers(carriers)
    examples, shares = ([float(x) for line in ax.lines for x in line.get_xdata()] for ax in figure.axes)
    assert min(examples) == 1.0
    assert max(examples) > 6.0
    assert max(shares) == 1.0
    plt.close("all")


def test_the_numbers_are_those_that_are_drawn(carriers: pd.DataFrame) -> None:
    ends = figure_numbers(carriers).set_index("measure")
    assert ends.loc["largest_share", "geometric_high"] == 1.0
    assert ends.loc["effective_examples", "geometric_low"] == 1.0


def test_bars_of_accuracies_and_shares_end_at_all_and_nothing() -> None:
    records = records_frame(wide("test_accuracy", (0.9, 0.99)))
    sweep = plot_sweep(over_train_size(records), rho=0.1, xlabel="examples").axes[0]
    at = {"layer": "blocks.0.q", "index": 1, "subspace": "column"}
    captured = [
        *wide("captured_energy", (0.05, 0.6), **at),
        *wide("captured_energy_null", (0.1, 0.1), **at),
        *wide("captured_energy_optimum", (0.9, 0.9), **at),
    ]
    alignment = plot_alignment(records_frame(captured))
    for ax, all_of_it in ((sweep, 100.0), (alignment, 1.0)):
        (bars,) = ax.containers
        low, high = bars.lines[2][0].get_segments()[0][:, 1]
        assert high == pytest.approx(all_of_it)
        assert low >= 0
    plt.close("all")


def test_the_map_of_a_rank_study_takes_the_ranks_in_their_order() -> None:
    study = pd.DataFrame({"method": ["lora_r2", "bilora_r16", "bilora_r2", "lora_r16", "bilora_r1", "lora_r1"]})
    assert mapped_methods(study) == ["bilora_r1", "bilora_r2", "bilora_r16", "lora_r1", "lora_r2"]
    assert mapped_methods(pd.DataFrame({"method": ["sam", "bilora", "lora"]})) == ["lora", "bilora"]
