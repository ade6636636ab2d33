"""The figures of a study, each with a caption that says how its numbers were obtained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
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
    seeds = records.loc[records["measure"] == "train_loss", "seed"].nunique()
    over = f"Means over {seeds} seeds; bars are 95 % Student-t intervals over seeds."
    plans: list[tuple[str, str, str, Callable[[], Figure]]] = [
        (
            "worst_case_rise",
            "worst_case_rise",
            "Worst-case rise of the training loss in balls around the merged weights of the adapted layers, by "
            "projected gradient ascent: lower bounds of the true maximum. Left: over all weights. Right: inside the "
            "tangent space of the run's adapter (for methods without one, of the best rank-r fit of their update). "
            f"The grey band marks rho = {rho:g}, at which the claims are judged. {over} Marks of one radius are set "
            "slightly apart; an interval that reaches zero is cut at a twentieth of the mean.",
            lambda: plot_worst_case(records, rho=rho),
        ),
        (
            "eigenvalues",
            "hessian_eigenvalue",
            "Hessian eigenvalues of largest magnitude of the training loss over the adapted layers' merged weights, "
            f"by thick-restart Lanczos; residuals stand in the agreement table. {over}",
            lambda: plot_eigenvalues(records),
        ),
        (
            "alignment",
            "captured_energy",
            "Share of the dominant eigenvectors' blocks, layer by layer, in the column space of the auxiliary "
            "adapter (of the primary for methods without one), averaged over the eigenvectors. Black: expectation "
            "for a random subspace of the same rank, r/out. Grey dotted: the most that any subspace of that rank "
            f"could hold. {over}",
            lambda: plot_alignment(records),
        ),
        (
            "accuracy_sharpness",
            "test_accuracy",
            f"Test accuracy against the worst-case rise of the training loss at rho = {rho:g} in the full space (a "
            "lower bound). Small marks are runs, large marks are means over seeds.",
            lambda: plot_accuracy_sharpness(records, rho=rho),
        ),
    ]
    drawn = []
    for name, needed, caption, draw in plans:
        if (records["measure"] == needed).any():
            figure = draw()
            drawn.append(FigureFile(name, caption, save_figure(figure, folder, name)))
            plt.close(figure)
    return drawn
