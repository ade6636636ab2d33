"""Learning rates and radii tried on a validation split, and the choice among them by rule."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import qmc

from analyses.measures.minima import load_subject
from analyses.measures.worst_cases import search_settings
from analyses.records import RecordsError, read_json, write_atomically, write_json, write_sealed
from analyses.records.integrity import is_damaged
from analyses.running.damage import set_aside, set_damaged_base_aside, set_damaged_run_aside
from analyses.running.executors import Engine, Failure, quieten, run_cells
from analyses.running.preparing import check, exclusive, prepare, refuse_changed_data
from analyses.running.progress import ProgressFile
from analyses.study import Cell, MethodSettings, Study, StudyError, StudyFolder, TuningSettings
from analyses.study.settings import fingerprint
from analyses.training.runs import read_run, train_cell
from bilora.methods import method_class
from landscape import worst_case_sharpness

SETTINGS = ["learning_rate", "rho", "auxiliary_lr"]
NUMBERS = ["train_loss", "validation_accuracy", "validation_loss", "rise"]


@dataclass(frozen=True)
class GridPoint:
    """One training run of the tuning."""

    method: str
    settings: MethodSettings
    seed: int

    def __str__(self) -> str:
        numbers = "-".join(f"{value:g}" for value in self.settings.model_dump(include=set(SETTINGS)).values() if value)
        return f"{self.method}-{numbers}-seed{self.seed}"


def tried(study: Study, tuning: TuningSettings) -> Iterator[tuple[str, MethodSettings]]:
    """Every method with every combination of its settings; methods without a grid are not tuned."""
    for method, own in study.methods.items():
        family = method_class(own.method or method)
        for rate, rho, ratio in _points(method, own, tuning, "rho" in family.uses):
            auxiliary = own.auxiliary_lr if ratio is None else float(f"{rate * ratio:.6g}")
            auxiliary = auxiliary if "auxiliary_lr" in family.uses else None
            yield method, own.model_copy(update={"learning_rate": rate, "rho": rho, "auxiliary_lr": auxiliary})


def _points(
    method: str, own: MethodSettings, tuning: TuningSettings, has_ball: bool
) -> Iterator[tuple[float, float, float | None]]:
    """Learning rate, radius (0 without a ball) and the auxiliary's rate over the primary's.

    What no grid is given for stays the method's own; None is an auxiliary's rate that does.
    """
    design = tuning.design
    if design is None:
        rates, radii = tuning.learning_rate.get(method, []), tuning.rho.get(method, [own.rho])
        kept: list[float | None] = [1.0 if own.auxiliary_lr is None else None]
        yield from itertools.product(rates, radii, tuning.auxiliary_lr_ratio.get(method) or kept)
        return
    drawn = qmc.Sobol(d=3, rng=np.random.default_rng(design.seed)).random(design.settings)
    ranges = np.log(np.array([design.learning_rate, design.rho, design.auxiliary_lr_ratio]))
    for rate, rho, ratio in np.exp(ranges[:, 0] + drawn * (ranges[:, 1] - ranges[:, 0])):
        yield _round(rate), _round(rho) if has_ball else 0.0, _round(ratio)


def tune(study: Study, folder: StudyFolder, *, engine: Engine) -> tuple[pd.DataFrame, list[Failure]]:
    """Train every setting on the tuning seeds and judge it on the validation split.

    Returns:
        One row a method and setting: means over the seeds, the standard error of the accuracy, and the number of runs
        that diverged or failed; and the failures.

    Raises:
        StudyError: The study says nothing of tuning.
    """
    if study.tuning is None:
        raise StudyError("tuning: the study has no grid; add a 'tuning' section")
    check(study)
    seeds = study.tuning.seeds
    settings = list(tried(study, study.tuning))
    points = [GridPoint(method, setting, seed) for method, setting in settings for seed in seeds]
    failures: list[Failure] = []
    with exclusive(study, folder):
        quieten()
        refuse_changed_data(study, folder)
        set_damaged_base_aside(study, folder)
        for point in points:
            variant, cell = _variant(study, point)
            set_damaged_run_aside(variant, folder, cell)
        prepare(study, folder)
        missing = [point for point in points if _kept(study, folder, point) is None]
        if missing:
            failures = run_cells(missing, partial(_try, study), folder, engine)
    rows = []
    for method, setting in settings:
        kept = [_kept(study, folder, GridPoint(method, setting, seed)) for seed in seeds]
        results = [found for found in kept if found is not None and not found.get("diverged")]
        measured = pd.DataFrame(results, columns=NUMBERS).astype(float)
        chosen = {key: setting.model_dump()[key] for key in SETTINGS}
        noise = {"validation_accuracy_se": measured["validation_accuracy"].sem()}
        failed = {"num_failed": len(seeds) - len(results)}
        rows.append({"method": method} | chosen | measured.mean().to_dict() | noise | failed)
    return pd.DataFrame(rows), failures


def best_settings(
    table: pd.DataFrame, tuning: TuningSettings, methods: dict[str, MethodSettings]
) -> dict[str, MethodSettings]:
    """The choice for each method by rule: the best mean validation accuracy among settings that fit the training data.

    Settings within one standard error of the best accuracy are as good as it: the one of the lowest validation loss is
    taken, as for tasks without an accuracy. With ``tuning.fit_like`` that is done for this method alone, and each other
    one gets the setting whose training loss has the ratio nearest to 1 to its. What sets a variant apart stays
    as it is. Methods of which no setting fits the training data are left out (`unfit` says so).

    Args:
        table: Of `tune`.
        tuning: The rule's settings.
        methods: The study's methods.

    Raises:
        StudyError: No setting of the method that the others are to fit like fits the training data.
    """
    chosen = {}
    fitting = {str(method): _fitting(rows, tuning) for method, rows in table.groupby("method", sort=False)}
    fitting = {method: rows for method, rows in fitting.items() if len(rows)}
    if tuning.fit_like is not None and tuning.fit_like not in fitting:
        raise StudyError(f"tuning.fit_like: {'; '.join(unfit(table, tuning))}")
    like = None if tuning.fit_like is None else float(_most_accurate(fitting[tuning.fit_like])["train_loss"])
    for method, rows in fitting.items():
        if like is None or method == tuning.fit_like:
            row = _most_accurate(rows)
        else:
            row = rows.loc[np.log(rows["train_loss"] / like).abs().idxmin()]
        auxiliary = None if pd.isna(row["auxiliary_lr"]) else float(row["auxiliary_lr"])
        update = {"learning_rate": float(row["learning_rate"]), "rho": float(row["rho"]), "auxiliary_lr": auxiliary}
        chosen[method] = methods[method].model_copy(update=update)
    return chosen


def unfit(table: pd.DataFrame, tuning: TuningSettings) -> list[str]:
    """The methods of which no setting fits the training data; in words."""
    found = []
    for method, rows in table.groupby("method", sort=False):
        if _fitting(rows, tuning).empty:
            whole = rows[rows["num_failed"] == 0]
            lowest = f"the lowest is {whole['train_loss'].min():.3g}" if len(whole) else "every one had a failed run"
            found.append(
                f"{method}: no setting reaches a training loss of {tuning.max_train_loss:g} at all seeds ({lowest}); "
                "raise tuning.max_train_loss, or try others"
            )
    return found


def _fitting(rows: pd.DataFrame, tuning: TuningSettings) -> pd.DataFrame:
    return rows[(rows["num_failed"] == 0) & (rows["train_loss"] <= tuning.max_train_loss)]


def _most_accurate(fit: pd.DataFrame) -> pd.Series:
    if fit["validation_accuracy"].isna().all():
        return fit.sort_values("validation_loss").iloc[0]
    best = fit.sort_values("validation_accuracy", ascending=False).iloc[0]
    noise = float(best.get("validation_accuracy_se", 0.0) or 0.0)
    as_good = fit[fit["validation_accuracy"] >= best["validation_accuracy"] - (0.0 if np.isnan(noise) else noise)]
    return as_good.sort_values("validation_loss").iloc[0]


def at_the_edge(table: pd.DataFrame, chosen: dict[str, MethodSettings]) -> list[str]:
    """Which choices lie at an end of what was tried, where a better one may lie beyond; in words."""
    found = []
    for method, settings in chosen.items():
        rows = table[table["method"] == method]
        for name in SETTINGS:
            values, own = rows[name].dropna().unique(), getattr(settings, name)
            if own is not None and len(values) > 1 and own in (values.min(), values.max()):
                end = "lowest" if own == values.min() else "highest"
                found.append(f"{method}: {name} {own:g} is the {end} of {len(values)} tried; try beyond it")
    return found


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write the results as CSV."""
    write_atomically(path, lambda temporary: table.to_csv(temporary, index=False, float_format="%.6g"))


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def _variant(study: Study, point: GridPoint) -> tuple[Study, Cell]:
    """The study with a point's settings, and the cell to train."""
    cell = Cell(point.method, point.seed, study.train_sizes[0])
    return study.model_copy(update={"methods": {point.method: point.settings}}), cell


def _result(study: Study, folder: StudyFolder, point: GridPoint) -> Path:
    variant, cell = _variant(study, point)
    with_rise = ""
    if study.tuning and study.tuning.rise:
        with_rise = f"-rise-{fingerprint([study.claims.rho, search_settings(study)])}"
    return folder.root / "grid" / f"{variant.run_name(cell)}{with_rise}.json"


def _kept(study: Study, folder: StudyFolder, point: GridPoint) -> dict[str, Any] | None:
    """The numbers of a point that was tried; a file that is not what was written is set aside."""
    path = _result(study, folder, point)
    if not path.exists():
        return None
    try:
        found = read_json(path)
    except RecordsError:
        found = None
    if is_damaged(path) or not isinstance(found, dict) or not {"diverged", "train_loss"} & found.keys():
        set_aside(folder, [path])
        return None
    return found


def _try(study: Study, folder: StudyFolder, point: GridPoint, progress: ProgressFile) -> None:
    """Train one point and keep its numbers."""
    variant, cell = _variant(study, point)
    run, result = folder.run(variant, cell), _result(study, folder, point)
    if not run.exists():
        train_cell(variant, cell, folder, progress.stage("train"))
    if reason := read_run(run)["diverged"]:
        write_sealed(result, partial(write_json, content={"diverged": reason}))
        return
    subject = load_subject(variant, cell, folder)
    risk, errors = subject.risk(), subject.errors("validation")
    numbers = {"train_loss": risk.loss(), "validation_loss": subject.risk("validation").loss()}
    if errors is not None:
        numbers["validation_accuracy"] = 1 - errors.loss()
    if study.tuning and study.tuning.rise:
        found = worst_case_sharpness(risk, study.claims.rho, seed=cell.seed, **search_settings(study))
        numbers["rise"] = found.rise
    write_sealed(result, partial(write_json, content=numbers))
