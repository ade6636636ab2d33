"""Compare minima: everything the audit measures, at models from anywhere, and what lies between them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
import yaml
from torch import nn

from analyses.comparing.between import Between
from analyses.comparing.data import Examples, examples_of
from analyses.comparing.minima import Minima, checksum, gather_minima
from analyses.comparing.result import Comparison
from analyses.comparing.settings import ComparisonPlan, ComparisonSettings, comparison_settings, plan_of
from analyses.comparing.sources import Reader
from analyses.measures.alignment import ALIGNMENT
from analyses.measures.angles import ANGLES
from analyses.measures.base import Measure
from analyses.measures.curvature import CURVATURE
from analyses.measures.generalization import fit
from analyses.measures.minima import Progress, Rows, Subject
from analyses.measures.registry import MEASURES, own_measures, with_needs
from analyses.measures.sharpness import RECOVERY, SHARPNESS
from analyses.measures.spectrum import SPECTRUM
from analyses.records import read_records, records_frame, write_atomically, write_records
from analyses.records.integrity import is_damaged
from analyses.running.preparing import locked
from analyses.study import Cell, StudyError, StudyFolder
from analyses.training.devices import check_device, take_device
from analyses.training.runs import environment
from bilora.adapters import PRIMARY
from landscape import EmpiricalRisk
from landscape.batches import to_device
from landscape.losses import Batch, LabelLoss, PerExampleLoss, binary_cross_entropy, mse, zero_one
from reports.units import NATS, OWN, SQUARES

STUDY = "comparison"
"""Name in the records' column ``study``."""
SETTINGS = "comparison.yaml"
"""File of the settings in a comparison's folder."""

Stage = Callable[[str], None]


def compare(
    minima: Mapping[str, Any],
    batches: Iterable[Batch],
    test: Iterable[Batch] | None = None,
    *,
    loss: PerExampleLoss | None = None,
    error: PerExampleLoss | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Comparison:
    """Measure minima found by different optimizers side by side; a single one is inspected.

    The same searches with the same seeds at every minimum, over the same weights: worst-case rises in absolute,
    relative and adaptive balls, top eigenpairs, trace and spectral density, and between minima distances, barriers on
    straight lines and trained curves, and the loss over the plane through all of them. Memory: all models, and while
    what lies between them is measured one vector of their differing weights a minimum and one a point of a path.

    Args:
        minima: By name: models, `peft.PeftModel`s, trainers, `bilora.Minimum`s, or places of any of these.
        batches: Examples whose mean loss is measured, as of `landscape.EmpiricalRisk`.
        test: Other examples, whose loss stands beside it.
        loss: Of single examples; default as of `landscape.EmpiricalRisk`.
        error: 0 for a right prediction, 1 for a wrong one; default: the predicted class's under the default loss.
        out: Folder for records, figures, tables and the page; what an interrupted call left there is not repeated.
        options: See `analyses.comparing.settings.ComparisonSettings`.

    Returns:
        The comparison; measurements that failed are named in its ``failures``.

    Raises:
        StudyError: An argument is wrong, the minima cannot be compared, or ``out`` is in use or something else's.

    >>> torch.manual_seed(0) and None
    >>> net, data = torch.nn.Linear(4, 3), [(torch.eye(4), torch.tensor([0, 1, 2, 0]))]
    >>> found = compare({"a": net, "b": net}, data, radii=[0.1], what=["fit", "paths"])
    >>> found.pairs["distance"].tolist()
    [0.0]
    """
    settings = comparison_settings(options)
    check_device(settings.device)
    if out is not None:
        check_folder(Path(out))
    found = gather_minima(minima, settings.params, Reader())
    return compare_minima(found, examples_of(batches, test, loss, error), settings, Path(out) if out else None)


def compare_minima(
    minima: Minima,
    examples: Examples,
    settings: ComparisonSettings,
    out: Path | None,
    *,
    stage: Stage = lambda text: None,
    notes: Iterable[str] = (),
) -> Comparison:
    """Compare minima that are read already.

    Args:
        minima: What is compared.
        examples: On which examples.
        settings: How.
        out: Folder for the results; None for none.
        stage: Told what is being done.
        notes: Caveats from before.
    """
    with _folder(out) as root:
        work = _Work(minima, examples, settings, root, stage, notes=list(notes))
        frames = [work.records_of(name) for name in minima.names]
        frames += work.records_between()
        records = pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)
        result = Comparison(
            records, tuple(minima.names), work.plan.rho, work.failures, work.notes, tuple(work.own_quantities),
            _unit(examples.loss),
        )  # fmt: skip
        if out is not None:
            text = yaml.safe_dump(settings.model_dump(mode="json") | {"minima": minima.names}, sort_keys=False)
            write_atomically(root / SETTINGS, lambda temporary: temporary.write_text(text))
            result.save(root, environment())
    return result


def _unit(loss: Any) -> str:
    """Of the losses: nats of a cross-entropy, which is the default, and of a squared error the label's squared."""
    if loss is zero_one:
        return OWN
    of_torch = nn.CrossEntropyLoss | nn.NLLLoss | nn.BCELoss | nn.BCEWithLogitsLoss
    if loss is None or loss is binary_cross_entropy or isinstance(loss, LabelLoss | of_torch):
        return NATS
    return SQUARES if loss is mse or isinstance(loss, nn.MSELoss) else OWN


def check_folder(out: Path) -> None:
    """Refuse a folder that holds something else than a comparison.

    Raises:
        StudyError: It does.
    """
    if out.exists() and not (out / SETTINGS).is_file():
        unfinished = out.is_dir() and {path.name for path in out.iterdir()} <= {".lock", "measurements"}
        if not unfinished:
            raise StudyError(f"--out: {out} exists and is not a comparison's folder; choose another or empty it")


def _fit(subject: Subject, progress: Progress) -> Rows:
    """Losses, accuracies, and norms of the gradient and of the measured weights."""
    risk = subject.risk()
    yield from fit(subject, subject.settings)
    yield {"measure": "gradient_norm", "subspace": "full", "value": float(risk.gradient().double().norm())}
    yield {"measure": "weight_norm", "value": float(risk.theta.double().norm())}
    progress(1, 1)


def _own(settings: ComparisonSettings) -> dict[str, Measure]:
    """The user's measures, none of which may read what only a training leaves."""
    found = own_measures(settings.own, ["fit", *(measure.name for measure in MEASURES)], "own")
    for name, measure in found.items():
        if any(one.recorded for one in with_needs([measure])):
            raise StudyError(f"own: {name} reads what is recorded along training, which a comparison does not have")
    return found


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """The comparison's folder, held against other processes, or a temporary one."""
    if out is None:
        with TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    check_folder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"--out: cannot make {out}: {error.strerror}") from error
    with locked(StudyFolder(out)):
        yield out


@dataclass
class _Work:
    """One comparison under way."""

    minima: Minima
    examples: Examples
    settings: ComparisonSettings
    root: Path
    stage: Stage
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    own_quantities: dict[str, None] = field(default_factory=dict)
    """What the user's measures recorded, in their order."""

    def __post_init__(self) -> None:
        self._own = _own(self.settings)
        device = take_device(self.settings.device)
        self._risks: dict[str, EmpiricalRisk] = {}
        self._errors: dict[str, EmpiricalRisk | None] = {}
        for name, one in self.minima.by_name.items():
            one.model.to(device)
            batches = [[to_device(batch, device) for batch in self.examples.batches(s)] for s in self.examples.splits]
            wrong = self.examples.error
            try:
                self._risks[name], *_ = [one.risk(part, loss=self.examples.loss) for part in batches]
                self._errors[name] = None if wrong is None else one.risk(batches[0], loss=wrong)
            except (ValueError, TypeError, RuntimeError) as error:
                raise StudyError(f"{name}: the model and the batches do not fit: {error}") from error
        ordered = [self._risks[name] for name in sorted(self._risks)]
        self.stage("radii")
        self.plan: ComparisonPlan = plan_of(self.settings, ordered)

    def records_of(self, name: str) -> pd.DataFrame:
        """All records of one minimum; a measure that fails takes none of the others down."""
        subject = self._subject(name)
        frames = [records_frame([])]
        broken: set[str] = set()
        for measure in with_needs(self._measures(subject)):
            if broken.intersection(need.name for need in measure.needs):
                continue
            self.stage(f"{name}: {measure.name}")
            try:
                frames.append(self._measured(measure, subject))
                if measure.name in self._own:
                    self.own_quantities |= dict.fromkeys(frames[-1]["measure"])
            except Exception as error:  # whatever a model of the user's does
                broken.add(measure.name)
                self.failures[f"{name}: {measure.name}"] = _reason(error)
        return pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)

    def records_between(self) -> list[pd.DataFrame]:
        """Records of all pairs and of the plane, each in a file of its own."""
        wanted = set(self.settings.what)
        self._note_what_does_not_apply()
        if len(self.minima.names) < 2 or not wanted & {"paths", "plane"}:
            return []
        names = self.minima.differing
        first = self.minima.first.model
        batches = [to_device(batch, take_device(self.settings.device)) for batch in self.examples.train]
        risk = EmpiricalRisk(first, batches, self.examples.loss, names, check=False)
        points = {
            name: risk.layout.join({key: one.model.get_parameter(key).detach().to(risk.dtype) for key in names})
            for name, one in self.minima.by_name.items()
        }
        between = Between(risk, points, "recomputed" if self.minima.batch_norm else "frozen", self.settings.seed)
        if self.minima.batch_norm:
            self.notes.append(
                "The minima keep batch statistics of their own: between them these are recomputed at every point, at "
                "the ends too, while curves are trained with those of one minimum."
            )
        settings, frames = self.settings, []
        effort = f"{settings.path_points} {settings.curve_steps} {settings.seed}"
        for a, b in between.pairs() if "paths" in wanted else ():
            key = checksum([a, points[a], b, points[b], self._losses(a), self._losses(b), effort])
            rows = between.pair(a, b, num_points=settings.path_points, curve_steps=settings.curve_steps)
            frames.append(self._kept(f"{a} and {b}: path", self.root / "measurements" / f"pair-{key}.parquet", rows))
        ordered = [points[name] for name in sorted(points)]
        if "plane" in wanted and len({checksum([point]) for point in ordered}) > 2:
            key = checksum([*ordered, *sorted(points), *map(self._losses, sorted(points)), str(settings.plane_points)])
            rows = between.plane(settings.plane_points)
            frames.append(self._kept("plane", self.root / "measurements" / f"plane-{key}.parquet", rows))
        return frames

    def _note_what_does_not_apply(self) -> None:
        """Say of everything that was asked for by name what these minima lack for it."""
        asked = set(self.settings.what) if "what" in self.settings.model_fields_set else set()
        count, factors = len(self.minima.names), [PRIMARY in one.factors for one in self.minima.by_name.values()]
        if "paths" in asked and count < 2:
            self.notes.append("paths: expected two minima or more, between which they lead, got one.")
        if "plane" in asked and count < 3:
            self.notes.append(f"plane: expected three minima or more, which span it, got {count}.")
        if "alignment" in asked and not any(factors):
            self.notes.append("alignment: none of the minima has low-rank factors, whose spaces it is of.")

    def _measures(self, subject: Subject) -> list[Measure]:
        wanted = set(self.settings.what)
        splits = self.examples.splits
        measures = [Measure("fit", _fit, lambda plan: splits)] if "fit" in wanted else []
        measures += [one for one in (SHARPNESS, CURVATURE, SPECTRUM) if one.name in wanted]
        if "alignment" in wanted and PRIMARY in subject.minimum.factors:
            measures += [ALIGNMENT, ANGLES, RECOVERY]
        return [*measures, *self._own.values()]

    def _measured(self, measure: Measure, subject: Subject) -> pd.DataFrame:
        path = measure.file(self.plan, subject.place)
        rows = measure.run(replace(subject, settings=measure.settings(self.plan)), lambda step, total: None)
        return self._written(path, rows, subject.cell.method)

    def _kept(self, what: str, path: Path, rows: Rows) -> pd.DataFrame:
        self.stage(what)
        try:
            return self._written(path, rows, None)
        except Exception as error:
            self.failures[what] = _reason(error)
            return records_frame([])

    def _written(self, path: Path, rows: Rows, name: str | None) -> pd.DataFrame:
        """The records of a file, made from the rows if it is not there or no longer what was written."""
        if not path.exists() or is_damaged(path):
            fixed: dict[str, Any] = {"study": STUDY, "seed": self.settings.seed, "train_size": self.examples.count}
            if name is not None:
                fixed |= {"run": name, "method": name}
            write_records(records_frame(fixed | row for row in rows), path, environment())
        return read_records(path)

    def _subject(self, name: str) -> Subject:
        one, cell = self.minima.by_name[name], Cell(name, self.settings.seed, self.examples.count)
        rank = max((min(a.shape[0], b.shape[1]) for a, b in one.factors.get(PRIMARY, {}).values()), default=1)
        device = take_device(self.settings.device)
        return Subject(self.plan, cell, one, self.examples, device, self._place(name), rank)

    def _place(self, name: str) -> Path:
        """Folder of a minimum's measurements, another one for other weights, data, losses, weights measured or name."""
        one = self.minima.by_name[name]
        factors = [part for pairs in one.factors.values() for pair in pairs.values() for part in pair]
        parts = [name, *one.weight_names, *one.model.state_dict().values(), *factors, *self.examples.tensors()]
        key = checksum([*parts, self._losses(name), str(self.settings.seed)])
        return self.root / "measurements" / f"{_slug(name)}-{key}"

    def _losses(self, name: str) -> torch.Tensor:
        """Losses and errors of the examples at a minimum: they tell loss functions apart."""
        risk, errors = self._risks[name], self._errors[name]
        found = [risk.per_example_losses()]
        return torch.cat(found if errors is None else [*found, errors.per_example_losses()])


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in name)[:40]


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text.splitlines()[0]} ({Path(frame.filename).name}:{frame.lineno})"
