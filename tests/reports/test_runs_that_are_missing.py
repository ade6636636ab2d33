"""Tables, figures and texts where runs diverged or are missing, with several sizes of the training set."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses.records import DIVERGED, read_json, read_records, records_frame
from reports.alignment_tables import alignment_table
from reports.charts.fit import fit_chart
from reports.charts.forest import forest_chart
from reports.figures.forest import log_ratios
from reports.methods_text import methods_paragraph
from reports.sharpness_tables import measures_table
from reports.style import mean_interval
from reports.tables import difference_table, main_table
from tests.reports.conftest import RHO

LOWDATA = Path(__file__).parents[2] / "examples" / "digits-lowdata" / "records.parquet"


def run(method: str, seed: int, measure: str, value: float, size: int = 100) -> dict[str, object]:
    row = {"study": "s", "method": method, "seed": seed, "train_size": size, "measure": measure, "value": value}
    return row | ({"rho": RHO, "subspace": "full", "ball": "l2"} if measure == "worst_case_rise" else {})


def lost(seeds: int) -> pd.DataFrame:
    """Bi-LoRA is better where it did not diverge, which it did at the first seeds."""
    rows, noise = [], np.random.default_rng(0).normal(size=(12, 3))
    for seed in range(12):
        for number, (measure, value) in enumerate(
            {"test_loss": 1.0, "worst_case_rise": 1.0, "train_loss": 1.0}.items()
        ):
            rows.append(run("lora", seed, measure, value + 0.02 * noise[seed, number]))
            if seed >= seeds:
                rows.append(run("bilora", seed, measure, 0.4 + 0.02 * noise[seed, number]))
        rows.append(run("lora", seed, "test_accuracy", 0.8))
        if seed < seeds:
            rows.append(run("bilora", seed, DIVERGED, 1.0))
        else:
            rows.append(run("bilora", seed, "test_accuracy", 0.9))
    return records_frame(rows)


def test_a_method_that_diverged_is_not_the_best() -> None:
    shown, _ = main_table(lost(0), rho=RHO)
    assert shown.astype(str).apply(lambda column: column.str.contains(r"\*\*")).to_numpy().any()
    shown, _ = main_table(lost(9), rho=RHO)
    assert not shown.astype(str).apply(lambda column: column.str.contains(r"\*\*")).to_numpy().any()


def test_a_difference_says_of_how_many_pairs_it_is() -> None:
    shown, plain = difference_table(lost(9), rho=RHO)
    rise = shown.set_index("method").loc["Bi-LoRA", f"rise, full (rho={RHO:g})"]
    assert (
        rise.endswith("(3 of 12 pairs)")
        and plain.set_index("method").loc["bilora", f"rise, full (rho={RHO:g}) pairs"] == 3
    )
    assert "pairs)" not in difference_table(lost(0), rho=RHO)[0].to_string()


def test_a_seed_that_lacks_a_size_is_left_out_of_a_ratio() -> None:
    """The ratio is 1 at 20 examples and 4 at 400; half of the seeds lack the larger size."""
    rows = []
    for seed in range(6):
        for size, ratio in ((20, 1.0), (400, 4.0)):
            rows.append(run("lora", seed, "worst_case_rise", 1.0 + 0.01 * seed, size))
            if size == 20 or seed >= 3:
                rows.append(run("bilora", seed, "worst_case_rise", ratio * (1 + 0.011 * seed), size))
    _, plain = difference_table(records_frame(rows), rho=RHO)
    assert plain.set_index("method").loc["bilora", f"rise, full (rho={RHO:g}) ratio"] == pytest.approx(2, rel=0.02)


def test_intervals_are_over_seeds_whatever_the_number_of_sizes() -> None:
    records = read_records(LOWDATA)
    ratios = log_ratios(records, rho=RHO)
    own = ratios[(ratios["measure"] == "log_ratio_to_lora_of_test_loss") & (ratios["method"] == "bilora")]
    by_seed = own.pivot_table(index="seed", columns="train_size", values="value").mean(axis=1)
    mean, half = mean_interval(by_seed)
    chart = forest_chart(records, rho=RHO)
    assert chart is not None and len(by_seed) == 3
    marks = [trace for plot in chart.plots for trace in plot["data"] if "n = 3" in trace["hovertemplate"]]
    centres = [trace["x"][0] for trace in marks]
    assert any(centre == pytest.approx(math.exp(mean)) for centre in centres)
    mark = next(trace for trace in marks if trace["x"][0] == pytest.approx(math.exp(mean)))
    assert mark["error_x"]["array"][0] == pytest.approx(math.exp(mean + half) - math.exp(mean))
    _, plain = measures_table(records, rho=RHO)
    rises = records[
        (records["measure"] == "worst_case_rise") & (records["method"] == "lora") & (records["subspace"] == "full")
    ]
    wide = rises.pivot_table(index="seed", columns="train_size", values="value")
    assert plain.set_index("method").loc["lora", "worst case half-width"] == pytest.approx(
        mean_interval(wide.mean(axis=1))[1]
    )
    assert not alignment_table(records)[1].isna().all(axis=None)


def test_charts_tell_of_what_they_draw(records: pd.DataFrame) -> None:
    rises = (records["measure"] == "worst_case_rise") & (records["subspace"] == "full") & (records["seed"] == 0)
    infinite = records.assign(value=records["value"].where(~(rises & (records["method"] == "lora")), math.inf))
    chart, fit = forest_chart(infinite, rho=RHO), fit_chart(infinite, pd.DataFrame(), rho=RHO)
    assert chart is not None and " at 0.00" not in chart.described and "inf" not in chart.described
    whole = fit_chart(records, pd.DataFrame(), rho=RHO)
    assert fit is not None and whole is not None
    assert int(fit.described.split()[0]) == int(whole.described.split()[0]) - 1


def test_the_paragraph_counts_seeds_and_batches_as_they_were() -> None:
    rows = [run("lora", seed, "train_loss", 0.1) for seed in range(4)] + [
        run("lora", seed, "step_seconds", 0.1) for seed in range(7)
    ]
    settings = {
        "task": {"name": "digits"}, "training": {"epochs": 3, "batch_size": 25}, "adapters": {"r": 4, "alpha": 8},
        "methods": {"lora": {"batch_size": 10}, "slow": {"method": "lora", "batch_size": 50}},
    }  # fmt: skip
    rows += [run("slow", seed, "train_loss", 0.1) for seed in range(4)]
    text = methods_paragraph(settings, records_frame(rows), read_json(LOWDATA.with_name("claims.json")))
    assert "in batches of 10 or 50, with 4 paired seeds" in text
