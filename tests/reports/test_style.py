"""Marks of methods, intervals and saved files."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from reports.comparison.figures import plot_balls
from reports.style import (
    _STYLES,
    mean_interval,
    method_order,
    method_style,
    plot_context,
    save_figure,
    styles_of,
    told_apart,
)
from tests.reports.conftest import SHARPNESS


def test_known_methods_come_first_and_others_are_appended() -> None:
    assert method_order(["zeta", "bilora", "alpha", "full"]) == ["full", "bilora", "alpha", "zeta"]
    assert method_order(reversed(SHARPNESS)) == list(SHARPNESS)


def test_no_two_methods_look_alike_without_colour_and_line() -> None:
    styles = [method_style(method) for method in SHARPNESS]
    assert len({style.label for style in styles}) == len(styles)
    assert len({(style.colour, style.marker) for style in styles}) == len(styles)
    assert len({(style.marker, style.line) for style in styles}) >= len(styles) - 2
    assert method_style("new").label == "new"


def test_a_dashed_line_is_an_auxiliarys_alone() -> None:
    assert "--" not in {style.line for style in _STYLES.values()}
    names = [f"run {number}" for number in range(30)]
    with styles_of(names):
        assert "--" not in {method_style(name).line for name in names}


def test_interval_against_the_table_of_student_t() -> None:
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == pytest.approx(2.0)
    assert half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_interval_of_too_few_values_is_undefined() -> None:
    assert mean_interval([4.0, math.nan])[0] == 4.0
    assert math.isnan(mean_interval([4.0, math.nan])[1])
    assert all(math.isnan(value) for value in mean_interval([math.inf]))


def test_saved_files_do_not_depend_on_the_date_and_embed_truetype(tmp_path: Path) -> None:
    with plot_context():
        figure, ax = plt.subplots(figsize=(2, 2))
        ax.set_title("a title")
    png = save_figure(figure, tmp_path, "plot")
    first = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    assert save_figure(figure, tmp_path, "plot") == png
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == first
    plt.close(figure)
    pdf = (tmp_path / "plot.pdf").read_bytes()
    assert b"CreationDate" not in pdf
    assert b"/CIDFontType2" in pdf and b"/Type3" not in pdf
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.pdf", "plot.png", "plot.svg"]


@pytest.mark.parametrize("name", ["$\\frac{", "costs $5 or $6", "_hidden", "a_b^c", "<b>", "\\alpha"])
def test_a_name_stands_in_figures_as_it_is(name: str) -> None:
    rises = [{"method": one, "rho": rho, "value": rho} for one in (name, "plain") for rho in (0.1, 0.2)]
    records = pd.DataFrame(rises).assign(measure="worst_case_rise", ball="l2", subspace="full")
    with styles_of([name, "plain"]):
        canvas = plot_balls(records)
    canvas.canvas.draw()
    shown = [text.get_text() for text in canvas.legends[0].get_texts()]
    assert [text.replace("\\$", "$").replace("\u200b", "") for text in shown] == [name, "plain"]
    plt.close(canvas)


def test_no_two_methods_of_a_study_share_colour_and_marker() -> None:
    names = ["lora", "b", "galore", "c", "dora", "a", "lora_plus", *(f"bilora_r{rank}" for rank in (2, 3, 4, 6, 8, 12))]
    before = {name: method_style(name) for name in names}
    assert len({(style.colour, style.marker) for style in before.values()}) < len(names)
    with told_apart([*names, *SHARPNESS]):
        styles = {name: method_style(name) for name in {*names, *SHARPNESS}}
    assert len({(style.colour, style.marker) for style in styles.values()}) == len(styles)
    assert all(styles[name] == method_style(name) for name in SHARPNESS)
    assert all(styles[name].label == before[name].label for name in names)
    assert method_style("b") == before["b"]
