"""Figures, numbers and captions that say what the records say, whatever is missing or strange in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from analyses.records import DIVERGED, records_frame
from reports import figures
from reports.charts.alignment import alignment_chart
from reports.charts.curves import curves_chart
from reports.comparison.caveats import caveats
from reports.figures import draw_all
from reports.figures.counting import count, over
from reports.figures.eigenvalues import plot_eigenvalues
from reports.figures.surfaces import plot_contours
from reports.figures.sweeps import over_train_size, plot_sweep
from reports.figures.worst_case import plot_worst_case
from reports.page import write_report
from reports.sharpness_tables import search_table
from reports.tables import difference_table, main_table, markdown_table
from tests.reports.conftest import RHO, made_up_records, write_study

pytestmark = pytest.mark.usefixtures("svg_alone")


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def changed(records: pd.DataFrame, where: pd.Series, value: float) -> pd.DataFrame:
    return records.assign(value=records["value"].where(~where, value))


def test_captions_count_the_runs_that_are_drawn(records: pd.DataFrame, tmp_path: Path) -> None:
    few = records[(records["measure"] != "hessian_eigenvalue") | (records["seed"] < 2)]
    few = few[(few["measure"] != "worst_case_rise") | (few["method"] != "bilora") | (few["seed"] < 3)]
    captions = {one.name: one.caption for one in draw_all(few, rho=RHO, folder=tmp_path, formats=["png"])}
    assert "n = 2 seeds" in captions["eigenvalues"] and "n = 5 seeds" in captions["alignment"]
    assert "n = 3 to 5 seeds" in captions["worst_case_rise"] and "Student-t" in captions["worst_case_rise"]
    one_seed = few[few["seed"] == 0]
    assert "one seed has no interval" in over(one_seed)
    sized = pd.concat([few.assign(train_size=size) for size in (20, 50)])
    assert count(sized[sized["measure"] == "train_loss"]) == "n = 10 runs, 5 seeds at 2 sizes of the training set"
    assert count(sized[sized["measure"] == "train_loss"], by_size=True) == "n = 5 seeds a panel"


def test_numbers_beside_a_figure_are_those_that_it_draws(records: pd.DataFrame, tmp_path: Path) -> None:
    signed = records.copy()
    negative = (signed["measure"] == "hessian_eigenvalue") & (signed["seed"] == 1) & (signed["index"] == 2)
    signed.loc[negative, "value"] *= -1
    other = records[records["measure"] == "worst_case_rise"].assign(ball="relative")
    draw_all(pd.concat([signed, other.assign(value=9.0)]), rho=RHO, folder=tmp_path, formats=["png"])
    rises = pd.read_csv(tmp_path / "worst_case_rise.csv")
    at = rises[(rises["method"] == "lora") & (rises["rho"] == RHO) & (rises["subspace"] == "full")]
    at = at[at["measure"] == "worst_case_rise"].iloc[0]
    chosen = records[(records["measure"] == "worst_case_rise") & (records["method"] == "lora")]
    values = chosen[(chosen["rho"] == RHO) & (chosen["subspace"] == "full")]["value"].astype(float)
    assert at["geometric_mean"] == pytest.approx(stats.gmean(values)) and at["n"] == len(values)
    ends = np.exp(stats.t.interval(0.95, len(values) - 1, np.log(values).mean(), stats.sem(np.log(values))))
    assert [at["geometric_low"], at["geometric_high"]] == pytest.approx([*ends])
    eigenvalues = pd.read_csv(tmp_path / "eigenvalues.csv")
    assert set(eigenvalues["component"]) == {"positive", "negative"}
    signs = eigenvalues.groupby("component")["mean"].agg(["min", "max"])
    assert signs.loc["positive", "min"] > 0 and signs.loc["negative", "max"] < 0
    prediction = pd.read_csv(tmp_path / "prediction.csv")
    assert set(prediction["measure"]) == {"found_over_predicted"}


def test_figures_of_earlier_records_do_not_stay(tmp_path: Path) -> None:
    records = made_up_records(("lora", "bilora"), num_seeds=2)
    draw_all(records, rho=RHO, folder=tmp_path, formats=["png", "svg"])
    assert (tmp_path / "contours.svg").is_file()
    fewer = records[records["measure"] != "loss_surface"]
    draw_all(fewer, rho=RHO, folder=tmp_path, only=["eigenvalues"], formats=["png"])
    assert (tmp_path / "contours.svg").is_file()  # what is not asked for stays
    draw_all(fewer, rho=RHO, folder=tmp_path, formats=["png"])
    assert not list(tmp_path.glob("contours.*")) and (tmp_path / "eigenvalues.png").is_file()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("measure", ["worst_case_rise", "quadratic_rise", "loss_surface", "captured_energy_null"])
def test_figures_are_drawn_whatever_the_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measure: str, value: float
) -> None:
    def drawn_only(figure: Figure, folder: Path, name: str, formats: object) -> Path:
        figure.draw_without_rendering()
        return folder / f"{name}.png"

    monkeypatch.setattr(figures, "save_figure", drawn_only)  # writing files is what takes the time
    records = made_up_records(("lora", "bilora"), num_seeds=2)
    strange = changed(records, records["measure"] == measure, value)
    drawn = {one.name for one in draw_all(strange, rho=RHO, folder=tmp_path)}
    assert "eigenvalues" in drawn and ("contours" in drawn) == (measure != "loss_surface" or value == 0)


def test_a_page_is_written_without_a_finite_rise(claims: dict[str, Any], tmp_path: Path) -> None:
    records = made_up_records(("lora", "bilora"), num_seeds=2)
    folder = write_study(tmp_path, changed(records, records["measure"] == "worst_case_rise", np.inf), claims, [])
    text = write_report(folder).read_text()
    assert "Traceback" not in text and 'id="figures"' in text


def test_a_method_with_a_row_of_finite_losses_is_drawn_and_one_without_is_left_out(records: pd.DataFrame) -> None:
    surface = records["measure"] == "loss_surface"
    edge = surface & (records["method"] == "lora") & (records["alpha"].abs() > 0.15)
    none = surface & (records["method"] == "sam")
    drawn = plot_contours(changed(changed(records, edge, np.nan), none, np.inf))
    titles = [ax.get_title() for ax in drawn.axes if ax.get_title()]
    assert "LoRA" in titles and "SAM" not in titles


def test_values_that_are_not_finite_are_told_beside_the_mean(records: pd.DataFrame) -> None:
    lost = (records["measure"] == "test_loss") & (records["method"] == "bilora") & (records["seed"] == 0)
    shown, _ = main_table(changed(records, lost, np.inf), rho=RHO)
    cells = dict(zip(shown["method"], shown["test loss"], strict=True))
    assert cells["Bi-LoRA"].endswith("(4 of 5 finite)") and "finite" not in cells["LoRA"]
    diverged = records_frame([{"measure": DIVERGED, "method": "sam", "seed": 7, "train_size": 100, "value": 1.0}])
    shown, _ = main_table(pd.concat([records, diverged], ignore_index=True), rho=RHO)
    assert dict(zip(shown["method"], shown["runs diverged"], strict=True))["SAM"] == "1"
    rise = (records["measure"] == "worst_case_rise") & (records["method"] == "lora") & (records["seed"] == 0)
    difference_table(changed(records, rise, np.inf), rho=RHO)


def test_the_rise_chart_names_the_flattest_of_the_ball_that_it_draws(records: pd.DataFrame) -> None:
    other = records[records["measure"] == "worst_case_rise"].assign(ball="relative", value=77.0)
    chart = curves_chart(pd.concat([records.assign(ball="l2"), other], ignore_index=True))
    assert chart is not None and "l2 ball" in chart.described and "77" not in chart.described


def test_every_methods_chance_is_its_own(records: pd.DataFrame) -> None:
    wide = (records["measure"] == "captured_energy_null") & (records["method"] == "lora")
    chart = alignment_chart(changed(records, wide, 0.4))
    assert chart is not None
    lines = {trace["name"]: trace for trace in chart.plots[0]["data"] if trace["mode"] == "lines"}
    assert set(lines["chance of LoRA"]["y"]) == {0.4} and set(lines["chance of Bi-LoRA"]["y"]) == {0.125}
    assert lines["chance of LoRA"]["legendgroup"] == "lora"


def test_narrow_logarithmic_axes_have_numbers(records: pd.DataFrame) -> None:
    rises = records["measure"] == "worst_case_rise"
    narrow = records.assign(value=records["value"].where(~rises, 0.2 + 0.5 * (records["seed"] + 1) / 6))
    drawn = plot_worst_case(narrow, rho=RHO)
    drawn.draw_without_rendering()
    low, high = drawn.axes[0].get_ylim()
    ticks = drawn.axes[0].get_yticks()
    assert ((ticks >= low) & (ticks <= high)).sum() >= 2


def test_a_sweep_without_accuracies_has_the_rises_and_a_legend() -> None:
    records = made_up_records(("lora", "bilora"), num_seeds=2)
    sized = pd.concat([records.assign(train_size=size) for size in (20, 50)])
    drawn = plot_sweep(over_train_size(sized[sized["measure"] != "test_accuracy"]), rho=RHO, xlabel="examples")
    assert len(drawn.axes) == 1 and len(drawn.legends[0].get_texts()) == 2


def test_marks_of_one_rank_stay_nearer_than_those_of_the_next() -> None:
    names = tuple(f"method_{number}" for number in range(20))
    rows = [
        {"measure": "hessian_eigenvalue", "algorithm": "lanczos", "method": name, "seed": 0, "train_size": 9,
         "index": index, "value": 3.0 / index}
        for name in names for index in (1, 2)
    ]  # fmt: skip
    ax = plot_eigenvalues(records_frame(rows))
    places = np.array([container[0].get_xdata() for container in ax.containers if len(container[0].get_xdata())])
    assert np.abs(places - places.round()).max() < 0.5 and list(ax.get_xticks()) == [1, 2]


def test_tables_of_searches_and_balls_do_not_wait_for_the_other_measures(
    claims: dict[str, Any], tmp_path: Path
) -> None:
    records = made_up_records(("lora", "bilora"), num_seeds=2)
    folder = write_study(tmp_path, records[records["measure"] != "own_worst_case_rise"], claims, [])
    text = write_report(folder).read_text()
    assert ('id="exact"' in text) == bool(len(search_table(records)[0]))


def test_markdown_keeps_a_cell_on_its_line() -> None:
    text = markdown_table(pd.DataFrame({"method": ["two\nlines <b>|"]}))
    assert text.splitlines()[-1] == r"| two lines &lt;b>\| |"
    shown = markdown_table(pd.DataFrame({"method": ["**1.2**", "a*b*", "_new_", "lora_sam", "`x`", "**"]}))
    cells = [line[2:-2] for line in shown.splitlines()[2:]]
    assert cells == ["**1.2**", r"a\*b\*", r"\_new\_", "lora_sam", r"\`x\`", r"\*\*"]


@pytest.mark.parametrize(("losses", "differ"), [((-5.0, -4.99), False), ((-5.0, -1.0), True), ((0.1, 0.2), True)])
def test_fits_of_negative_losses_are_held_against_their_size(losses: tuple[float, float], differ: bool) -> None:
    fixed = {"measure": "train_loss", "seed": 0, "train_size": 9}
    rows = [fixed | {"method": name, "value": loss} for name, loss in zip("ab", losses, strict=True)]
    found = caveats(records_frame(rows), ["a", "b"])
    assert any("fit the data differently" in sentence for sentence in found) == differ
