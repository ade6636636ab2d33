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
from reports.figures.alignment_map import plot_alignment_map
from reports.figures.barriers import plot_barriers
from reports.figures.dynamics import plot_dynamics
from reports.figures.eigenvalues import plot_eigenvalues
from reports.figures.prediction import plot_prediction
from reports.figures.profiles import plot_profiles
from reports.figures.surfaces import plot_contours, plot_surfaces
from reports.figures.sweeps import over_rank, over_train_size, plot_sweep
from reports.figures.trajectories import plot_trajectories
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
    means = f"Means over n = {seeds} {'seeds' if seeds > 1 else 'seed'}"
    over = f"{means}; {bars}."
    lanczos = (measure == "hessian_eigenvalue") & (records["algorithm"] == "lanczos")
    at_rho = (measure == "worst_case_rise") & (records["subspace"] == "full") & np.isclose(records["rho"], rho)
    plans: list[tuple[str, bool, str, Callable[[], Figure]]] = [
        (
            "worst_case_rise",
            bool((measure == "worst_case_rise").any()),
            "Worst-case rise of the training loss in balls around the merged weights of the adapted layers, by "
            "gradient ascent from SAM's point and from the top eigenvectors with either sign: lower bounds of the true "
            "maximum. Left: over all weights. Right: inside the "
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
            "alignment_map",
            bool(((measure == "captured_energy") & (records["layer"] != "all")).any()),
            "The same shares eigenvector by eigenvector (1 has the largest absolute eigenvalue). White crosses: at or "
            f"below the expectation for a random subspace. {means}.",
            lambda: plot_alignment_map(records),
        ),
        (
            "accuracy_sharpness",
            bool((measure == "test_accuracy").any() and at_rho.any()),
            f"Test accuracy against the worst-case rise of the training loss at rho = {rho:g} in the full space, by "
            "projected gradient ascent (a lower bound). Faint marks are runs, large marks are means over "
            f"n = {seeds} {'seeds' if seeds > 1 else 'seed'}; intervals stand in the main table.",
            lambda: plot_accuracy_sharpness(records, rho=rho),
        ),
        (
            "train_size",
            records.loc[measure == "train_loss", "train_size"].nunique() > 1,
            "Test accuracy and worst-case rise of the training loss (a lower bound) over the number of training "
            f"examples. {over} An interval that reaches zero is cut at a twentieth of the mean.",
            lambda: plot_sweep(over_train_size(records), rho=rho, xlabel="training examples"),
        ),
        (
            "rank",
            records.loc[measure == "adapter_rank", "value"].nunique() > 2,
            "Test accuracy and worst-case rise of the training loss (a lower bound) over the rank of the adapters. "
            f"{over} An interval that reaches zero is cut at a twentieth of the mean.",
            lambda: plot_sweep(over_rank(records), rho=rho, xlabel="rank"),
        ),
        (
            "profiles",
            bool((measure == "loss_profile").any()),
            "Training loss along unit directions through the first seed's minima, exact at the points drawn: a random "
            "direction inside the run's LoRA subspace, one in its complement, the top Hessian eigenvector, and the "
            f"worst case found at rho = {rho:g}. Where the loss overflows the line ends.",
            lambda: plot_profiles(records),
        ),
        (
            "contours",
            bool((measure == "loss_surface").any()),
            "Training loss over the plane of two unit directions through the first seed's minima (crosses): the worst "
            f"case found inside the run's LoRA subspace at rho = {rho:g}, and the part of the full space's worst case "
            "outside it. All panels share one logarithmic colour scale.",
            lambda: plot_contours(records),
        ),
        (
            "surfaces",
            bool((measure == "loss_surface").any()),
            "The contours of four methods in three dimensions, on one logarithmic height and colour scale.",
            lambda: plot_surfaces(records),
        ),
        (
            "trajectories",
            bool((measure == "trajectory").any()),
            "The merged weights along the first seed's training (dots, from the base model to the star) in the plane "
            "of their first two principal components, over the training loss in that plane. All panels share one "
            "logarithmic colour scale; methods that train all weights keep no snapshots.",
            lambda: plot_trajectories(records),
        ),
        (
            "prediction",
            bool((measure == "quadratic_rise").any()),
            "Worst-case rise found by the ascent over the maximum of the quadratic model, solved exactly in the span "
            "of the gradient, its image under the Hessian and the dominant eigenvectors; first seed. At 1 (grey) the "
            "loss behaves as its second-order expansion says; far above it, eigenvalues do not tell the sharpness.",
            lambda: plot_prediction(records),
        ),
        (
            "barriers",
            bool((measure == "loss_barrier").any()),
            "Barriers between the first seed's minima: the most by which the training loss on the straight line rises "
            "above the line between the losses at its ends, over evenly spaced points (a lower bound).",
            lambda: plot_barriers(records),
        ),
        (
            "dynamics",
            bool(measure.isin(["angle_to_final", "cos_auxiliary_gradient"]).any()),
            "Left: largest principal angle between a factor B's column space and its final one, averaged over layers; "
            "the grey line is 10°, below which a space counts as settled. Right: cosine between what the auxiliary "
            "adds and the gradient at the merged weights, on the step's own batch: SAM's perturbation has 1. "
            f"{over.replace('bars are', 'bands are')}",
            lambda: plot_dynamics(records),
        ),
    ]
    drawn = []
    for name, has_records, caption, draw in plans:
        if has_records:
            figure = draw()
            drawn.append(FigureFile(name, caption, save_figure(figure, folder, name)))
            plt.close(figure)
    return drawn
