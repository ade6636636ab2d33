"""Figures in axes and parts of figures that their caller gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.figure import Figure

from reports.canvas import figure_of
from reports.figures.accuracy_sharpness import plot_accuracy_sharpness
from reports.figures.alignment import plot_alignment
from reports.figures.alignment_map import plot_alignment_map
from reports.figures.barriers import plot_barriers
from reports.figures.carriers import carried, plot_carriers, plot_searches, searches
from reports.figures.eigenvalues import plot_eigenvalues
from reports.figures.forest import log_ratios, plot_forest
from reports.figures.prediction import plot_prediction
from reports.figures.profiles import plot_profiles
from reports.figures.recovered import plot_recovered, recovered_shares
from reports.figures.surfaces import plot_contours, plot_surfaces
from reports.figures.worst_case import plot_worst_case
from tests.reports.conftest import RHO, SHARPNESS

ONE_PANEL: dict[str, Callable[..., object]] = {
    "eigenvalues": plot_eigenvalues,
    "alignment": plot_alignment,
    "barriers": plot_barriers,
}
SEVERAL: dict[str, tuple[int, Callable[..., object]]] = {
    "forest": (3, lambda records, canvas: plot_forest(log_ratios(records, rho=RHO), canvas=canvas)),
    "carriers": (2, lambda records, canvas: plot_carriers(carried(records, rho=RHO), canvas=canvas)),
    "prediction": (4, plot_prediction),
    "profiles": (2, plot_profiles),
    "worst_case": (len(SHARPNESS), lambda records, canvas: plot_worst_case(records, rho=RHO, canvas=canvas)),
    "accuracy": (1, lambda records, canvas: plot_accuracy_sharpness(records, rho=RHO, canvas=canvas)),
    "alignment_map": (3, plot_alignment_map),
    "contours": (len(SHARPNESS), plot_contours),
    "surfaces": (4, plot_surfaces),
}


@pytest.fixture
def page() -> Iterator[Figure]:
    plt.close("all")
    figure = plt.figure(figsize=(14, 6), layout="constrained")
    yield figure
    plt.close("all")


@pytest.mark.parametrize("name", ONE_PANEL)
def test_a_figure_of_one_panel_is_drawn_in_the_axes_given(records: pd.DataFrame, page: Figure, name: str) -> None:
    ours, theirs = page.subplots(1, 2)
    assert ONE_PANEL[name](records, ax=ours) is ours
    assert ours.has_data() and not theirs.has_data()
    assert plt.get_fignums() == [page.number]
    assert not page.legends  # the caller's figure is the caller's
    page.draw_without_rendering()


@pytest.mark.parametrize("name", SEVERAL)
def test_a_figure_of_several_panels_is_drawn_in_the_part_given(records: pd.DataFrame, page: Figure, name: str) -> None:
    ours, theirs = page.subfigures(1, 2)
    count, draw = SEVERAL[name]
    assert draw(records, canvas=ours) is ours
    assert sum(ax.has_data() and ax.get_label() != "<colorbar>" for ax in ours.axes) == count
    assert not theirs.axes and not page.legends
    assert plt.get_fignums() == [page.number]
    page.draw_without_rendering()


def test_shares_of_several_radii_and_searches_go_where_they_are_told(records: pd.DataFrame, page: Figure) -> None:
    inside = records[(records["measure"] == "worst_case_rise") & (records["subspace"] == "lora")]
    shares = recovered_shares(pd.concat([records, inside.assign(subspace="auxiliary")], ignore_index=True))
    left, right = page.subfigures(1, 2)
    ax = left.subplots()
    assert plot_recovered(shares, ax=ax) is ax
    assert len(ax.containers) == len(SHARPNESS) and ax.get_legend() is not None
    with_passes = records.assign(num_passes=records["num_passes"].astype("Float64").fillna(235))
    assert plot_searches(searches(with_passes), with_passes, canvas=right) is right
    assert len(right.axes) == 2
    assert figure_of(ax) is page and figure_of(right) is page
