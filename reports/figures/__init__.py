"""The figures of a study, each with a caption that says how its numbers were obtained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from analyses.records import is_rise, write_atomically
from analyses.records.derive import eigenvalues_by_sign
from reports.canvas import Canvas, figure_of
from reports.figures.accuracy_sharpness import accurate_and_flat, plot_accuracy_sharpness
from reports.figures.alignment import CAPTURED, plot_alignment, shown_methods
from reports.figures.alignment_map import mapped_methods, plot_alignment_map
from reports.figures.barriers import plot_barriers
from reports.figures.carriers import carried, passes_of, plot_carriers, plot_searches, searches
from reports.figures.counting import count, over
from reports.figures.dynamics import plot_alignment_training, plot_dynamics
from reports.figures.eigenvalues import plot_eigenvalues
from reports.figures.forest import log_ratios, plot_forest
from reports.figures.numbers import figure_numbers
from reports.figures.prediction import plot_prediction, predictions
from reports.figures.profiles import plot_profiles
from reports.figures.recovered import captured_over_rank, plot_capture, plot_recovered, recovered_shares
from reports.figures.surfaces import plot_contours, plot_surfaces
from reports.figures.sweeps import over_rank, over_train_size, plot_sweep
from reports.figures.trajectories import plot_trajectories
from reports.figures.worst_case import plot_worst_case, searched_by, with_ratios
from reports.scales import losses_of
from reports.style import FORMATS, save_figure


@dataclass(frozen=True)
class FigureFile:
    """A drawn figure."""

    name: str
    caption: str
    path: Path


@dataclass(frozen=True)
class Plan:
    """A figure that could be drawn: from which records, and what its caption says."""

    name: str
    chosen: pd.DataFrame
    caption: str
    draw: Callable[[], Canvas | Axes]


def draw_all(
    records: pd.DataFrame,
    *,
    rho: float,
    folder: Path,
    only: Sequence[str] | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[FigureFile]:
    """Draw every figure for which there are records, in ``folder``: NAME in every format, its numbers in NAME.csv.

    Args:
        records: Records of a study.
        rho: Radius at which its claims are judged.
        folder: Where.
        only: Names of the figures wanted; default all.
        formats: See `reports.style.FORMATS`.

    Raises:
        ValueError: A name is unknown, or there are no records for it.
    """
    plans = [*_over_runs(records, rho), *_pictures(records, rho), *_along_training(records)]
    return draw_plans(plans, folder, only=only, formats=formats)


def draw_plans(
    plans: Iterable[Plan], folder: Path, *, only: Sequence[str] | None = None, formats: Sequence[str] = FORMATS
) -> list[FigureFile]:
    """Draw the planned figures for which there are records: NAME in every format, and the numbers in NAME.csv.

    Raises:
        ValueError: A name in ``only`` is unknown, or there are no records for it.
    """
    plans = list(plans)
    possible = [plan for plan in plans if len(plan.chosen)]
    for name in only or ():
        if name not in {plan.name for plan in possible}:
            there = ", ".join(plan.name for plan in possible)
            raise ValueError(f"--figures: expected some of {there} (or all), for which there are records; got {name!r}")
    drawn: list[FigureFile] = []
    for plan in plans if only is None else ():  # what earlier records left, of which there are none now
        for suffix in () if len(plan.chosen) else (*FORMATS, "csv"):
            (folder / f"{plan.name}.{suffix}").unlink(missing_ok=True)
    for plan in possible:
        if only is None or plan.name in only:
            figure = figure_of(plan.draw())
            drawn.append(FigureFile(plan.name, plan.caption, save_figure(figure, folder, plan.name, formats)))
            plt.close(figure)
            numbers = figure_numbers(plan.chosen)
            write_atomically(folder / f"{plan.name}.csv", partial(numbers.to_csv, index=False))
    return drawn


def _over_runs(records: pd.DataFrame, rho: float) -> Iterator[Plan]:
    """Figures of what every minimum has."""
    measure = records["measure"]
    ratios_to_lora = log_ratios(records, rho=rho)
    yield Plan(
        "forest",
        ratios_to_lora,
        f"Each method over LoRA, seed by seed ({count(ratios_to_lora)}): the worst-case rise of the training loss at "
        f"rho = {rho:g} in the full space (a lower bound), the training loss and the test loss at the minimum. Dots "
        "are runs, marks geometric means with 95 % Student-t intervals of the log ratios. A flatter minimum of the "
        "same training loss is one that fits as well; where the training loss is larger, some of the flatness is fit.",
        lambda: plot_forest(ratios_to_lora),
    )
    rises = with_ratios(records)
    ratios = rises.assign(measure="worst_case_rise_over_lora", value=rises["ratio"]).dropna(subset="value")
    yield Plan(
        "worst_case_rise",
        pd.concat([rises, ratios]),
        "Worst-case rise of the training loss in balls around the merged weights of the adapted layers: the largest "
        f"that {searched_by(records)} met, lower bounds of the true maximum; the table of search errors has "
        "the gap between two. Over all weights and (hollow marks, where there are several radii) inside the tangent "
        "space of the run's adapter (for methods without one, of the best rank-r fit of their update). "
        f"Geometric {over(rises, logs=True)} The claims are judged at rho = {rho:g}. The numbers hold the "
        "ratios to LoRA at the same seed, too.",
        lambda: plot_worst_case(records, rho=rho),
    )
    carriers = carried(records, rho=rho)
    yield Plan(
        "carriers",
        carriers,
        f"How many of the training examples carry the worst case at rho = {rho:g}: participation ratio (Σr)²/Σr² of "
        "the examples' parts in the rise, and the part of the largest, which exceeds 1 where the loss of others "
        "falls. A worst case carried by one example is a statement about that example. Geometric "
        f"{over(carriers, logs=True)}",
        lambda: plot_carriers(carriers),
    )
    gaps = searches(records)
    with_passes = records.loc[records["measure"] == "worst_case_rise", "num_passes"].notna().any()
    yield Plan(
        "searches",
        pd.concat([gaps, passes_of(records)]) if with_passes else gaps.iloc[:0],
        "How far the poorer of two independent searches stays behind the best rise known, against the passes that both "
        "took: effort is doubled until they agree to 5 % (grey line) or the limit is reached. A mark a ball; a small "
        "gap does not prove that the maximum was found.",
        lambda: plot_searches(gaps, records),
    )
    eigenvalues = eigenvalues_by_sign(records)
    yield Plan(
        "eigenvalues",
        eigenvalues,
        "Hessian eigenvalues of largest magnitude of the training loss over the adapted layers' merged weights, "
        "by thick-restart Lanczos, ranked among those of their sign (hollow: negative); residuals stand in the "
        f"agreement table. Sizes by geometric {over(eigenvalues, logs=True)}",
        lambda: plot_eigenvalues(records),
    )
    captured = records[measure.isin(CAPTURED)]
    by_layer = captured[captured["layer"] != "all"]
    by_layer = by_layer if (by_layer["measure"] == "captured_energy").any() else by_layer.iloc[:0]
    drawn = by_layer[by_layer["method"].isin(shown_methods(by_layer))]
    yield Plan(
        "alignment",
        drawn,
        "Share of the dominant eigenvectors in the column space of the auxiliary adapter (of the primary for methods "
        "without one), averaged with equal weights over the eigenvectors and the layers of a block. "
        "Black: expectation for a random subspace of the same rank, r/out. Grey dotted: the most that any "
        f"subspace of that rank could hold. {over(drawn)}",
        lambda: plot_alignment(records),
    )
    mapped = by_layer[by_layer["method"].isin(mapped_methods(by_layer))]
    yield Plan(
        "alignment_map",
        mapped,
        "The same shares eigenvector by eigenvector (1 has the largest absolute eigenvalue). White crosses: at or "
        f"below the expectation for a random subspace. Means over {count(mapped)}; at most three methods.",
        lambda: plot_alignment_map(records),
    )
    shares = recovered_shares(records)
    yield Plan(
        "recovered_sharpness",
        shares,
        "Worst-case rise inside the tangent space of the auxiliary at the end of training, over the rise in the full "
        "ball of the same radius: the share of the sharpness that a perturbation of the auxiliary's form can see. "
        f"{_random_spaces(shares)} All rises are lower bounds by the same search.",
        lambda: plot_recovered(shares),
    )
    at_rho = is_rise(records, "full", rho)
    accuracy = measure == "test_accuracy"
    flat = accurate_and_flat(records, rho=rho)
    yield Plan(
        "accuracy_sharpness",
        records[at_rho | accuracy] if len(flat) else records.iloc[:0],
        f"Test accuracy against the worst-case rise of the training loss at rho = {rho:g} in the full space "
        "(a lower bound). Faint marks are runs, large marks are over "
        f"{count(flat, by_size=True)}: means of accuracies, geometric means of rises; intervals stand in the "
        "main table.",
        lambda: plot_accuracy_sharpness(records, rho=rho),
    )
    by_size, by_rank = over_train_size(records), over_rank(records)
    both = "Test accuracy and worst-case rise" if accuracy.any() else "Worst-case rise"
    swept = f"{both} of the training loss (a lower bound) over the"
    cut = "Rises by geometric means, with intervals of their logarithms."
    seeds = "Means over seeds; bars are 95 % Student-t intervals over them."
    at = records[at_rho | accuracy]
    yield Plan(
        "train_size",
        at if by_size["swept"].nunique() > 1 else records.iloc[:0],
        f"{swept} number of training examples. {seeds} {cut}",
        lambda: plot_sweep(by_size, rho=rho, xlabel="training examples"),
    )
    several_ranks = by_rank["swept"].nunique() > 2
    yield Plan(
        "rank",
        at if several_ranks else records.iloc[:0],
        f"{swept} rank of the adapters. {over(at)} {cut}",
        lambda: plot_sweep(by_rank, rho=rho, xlabel="rank"),
    )
    shares_by_rank = captured_over_rank(records, rho=rho) if several_ranks else records.iloc[:0]
    yield Plan(
        "captured_rank",
        shares_by_rank,
        "Left: share of the Hessian's dominant eigenvectors, weighted by |eigenvalue|, in the column spaces of the "
        "auxiliary, of the primary and of the gradient's top r singular vectors, against a random space and against "
        "the most that a space of that rank could hold. Right: worst-case rise inside the auxiliary's tangent space "
        f"over the rise in the full ball at rho = {rho:g}, and the same in a random space. {over(shares_by_rank)}",
        lambda: plot_capture(shares_by_rank),
    )


def _random_spaces(shares: pd.DataFrame) -> str:
    """How random spaces and means are drawn among the recovered shares."""
    if shares["rho"].nunique() == 1:
        return f"Grey bar: the same in a random space of equal ranks. Geometric {over(shares, logs=True)}"
    return f"Dotted: the same in a random space of equal ranks. {over(shares)} Bars that leave the axes are cut."


def _pictures(records: pd.DataFrame, rho: float) -> Iterator[Plan]:
    """Figures of the first seed."""
    measure = records["measure"]
    yield Plan(
        "profiles",
        losses_of(records, "loss_profile"),
        "Training loss along unit directions through the first seed's minima, exact at the points drawn: a random "
        "direction inside the run's LoRA subspace, one in its complement, the top Hessian eigenvector, and the "
        f"worst case found at rho = {rho:g}. Directions along which no loss changes by a "
        "tenth are left out; where the loss overflows the line ends.",
        lambda: plot_profiles(records),
    )
    grid = losses_of(records, "loss_surface")
    yield Plan(
        "contours",
        grid,
        "Training loss over the plane of two unit directions through the first seed's minima (crosses): the parts of "
        f"the worst case found at rho = {rho:g} inside the run's LoRA subspace and outside it. All panels share one "
        "colour scale, logarithmic where no loss is negative.",
        lambda: plot_contours(records),
    )
    yield Plan(
        "surfaces",
        grid,
        "The contours of at most four methods in three dimensions, on one scale of heights and colours.",
        lambda: plot_surfaces(records),
    )
    yield Plan(
        "trajectories",
        records[measure.isin(["trajectory", "trajectory_loss", "trajectory_variance"])]
        if len(losses_of(records, "trajectory_loss"))
        else records.iloc[:0],
        "The merged weights along the first seed's training (dots, from the base model to the star) in the plane "
        "of their first two principal components, over the training loss in that plane. All panels share one "
        "logarithmic colour scale; methods that train all weights keep no snapshots.",
        lambda: plot_trajectories(records),
    )
    predicted = predictions(records[(records["seed"] == 0)])
    yield Plan(
        "prediction",
        predicted,
        "Worst-case rise found by the searches over the maximum of the quadratic model, solved exactly in the span "
        "of the gradient, its image under the Hessian and the dominant eigenvectors; first seed. At 1 (grey) the "
        "loss behaves as its second-order expansion says; far above it, eigenvalues do not tell the sharpness.",
        lambda: plot_prediction(records[records["seed"] == 0]),
    )
    yield Plan(
        "barriers",
        records[measure == "loss_barrier"],
        "Barriers between the first seed's minima: the most by which the training loss on the straight line rises "
        "above the line between the losses at its ends, over evenly spaced points (a lower bound).",
        lambda: plot_barriers(records),
    )


def _along_training(records: pd.DataFrame) -> Iterator[Plan]:
    """Figures over the steps of training."""
    measure = records["measure"]
    along = records[measure.isin(["angle_to_final", "cos_auxiliary_gradient"])]
    yield Plan(
        "dynamics",
        along,
        "First: largest principal angle between a factor B's column space and its final one, averaged over layers; "
        "the grey line is 10°, below which a space counts as settled. Second: cosine between the perturbation of the "
        "weights and the gradient at the perturbed weights, on the step's own batch; means alone for more than eight "
        "methods. Dashed: the auxiliary's space. "
        f"{over(along, bands=True)}",
        lambda: plot_dynamics(records),
    )
    shares = records[measure == "alignment_along_training"]
    yield Plan(
        "alignment_training",
        shares,
        "Share of the dominant Hessian eigenvectors of the minimum that training ends in, weighted by |eigenvalue|, "
        "in the column spaces of the factors B on the way there. B starts at zero, with no space; the space of the "
        f"random auxiliary shows chance. {over(shares, bands=True)}",
        lambda: plot_alignment_training(records),
    )
