"""The figures of a study, each with a caption that says how its numbers were obtained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reports.figures.accuracy_sharpness import plot_accuracy_sharpness
from reports.figures.alignment import plot_alignment
from reports.figures.eigenvalues import plot_eigenvalues
from reports.figures.worst_case import plot_worst_case
from reports.style import save_figure


@dataclass(frozen=True)
class FigureFile:
    """A drawn figure."""

    name: str
    caption: str
    path: Path


def draw_all(records: pd.DataFrame, *, rho: float, folder: Path) -> list[FigureFile]:
    """Draw every figure for which there are records, as PDF and PNG in ``folder``."""
    measure = records["measure"]
    seeds = records.loc[measure == "train_loss", "seed"].nunique()
    bars = "bars are 95 % Student-t intervals over seeds" if seeds > 1 else "one seed has no interval"
    over = f"Means over n = {seeds} {'seeds' if seeds > 1 else 'seed'}; {bars}."
    lanczos = (measure == "hessian_eigenvalue") & (records["algorithm"] == "lanczos")
    at_rho = (measure == "worst_case_rise") & (records["subspace"] == "full") & np.isclose(records["rho"], rho)
    plans: list[tuple[str, bool, str, Callable[[], Figure]]] = [
        (
            "worst_case_rise",
            bool((measure == "worst_case_rise").any()),
            "Worst-case rise of the training loss in balls around the merged weights of the adapted layers, by "
            "projected gradient ascent: lower bounds of the true maximum. Left: over all weights. Right: inside the "
            "tangent space of the run's adapter (for methods without one, of the best rank-r fit of their update). "
            "Lower row: the rise divided by LoRA's at the same seed. "
            f"The grey band marks rho = {rho:g}, at which the claims are judged. {over} Marks of one radius are set "
            "slightly apart; an interval that reaches zero is cut at a twentieth of the mean.",
            lambda: plot_worst_case(records, rho=rho),
        ),
        (
            "eigenvalues",
            bool(lanczos.any()),
            "Hessian eigenvalues of largest magnitude of the training loss over the adapted layers' merged weights, "
            f"by thick-restart Lanczos; residuals stand in the agreement table. {over}",
            lambda: plot_eigenvalues(records),
        ),
        (
            "alignment",
            bool(((measure == "captured_energy") & (records["layer"] != "all")).any()),
            "Share of the dominant eigenvectors' blocks, layer by layer, in the column space of the auxiliary "
            "adapter (of the primary for methods without one), averaged over the eigenvectors with equal weights. "
            "Black: expectation for a random subspace of the same rank, r/out. Grey dotted: the most that any "
            f"subspace of that rank could hold. {over}",
            lambda: plot_alignment(records),
        ),
        (
            "accuracy_sharpness",
            bool((measure == "test_accuracy").any() and at_rho.any()),
            f"Test accuracy against the worst-case rise of the training loss at rho = {rho:g} in the full space, by "
            "projected gradient ascent (a lower bound). Faint marks are runs, large marks are means over "
            f"n = {seeds} {'seeds' if seeds > 1 else 'seed'}; intervals stand in the main table.",
            lambda: plot_accuracy_sharpness(records, rho=rho),
        ),
    ]
    drawn = []
    for name, has_records, caption, draw in plans:
        if has_records:
            figure = draw()
            drawn.append(FigureFile(name, caption, save_figure(figure, folder, name)))
            plt.close(figure)
    return drawn
