"""The command line: ``landscape init | audit | train | measure | compare | tune | report | presets | methods``."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import pandas as pd
from jsonargparse import Namespace
from pydantic import ValidationError

from analyses.arguments import parser_of
from analyses.comparing.request import compare_places
from analyses.comparing.settings import WHAT
from analyses.records import RecordsError, read_json, read_records, write_atomically, write_json
from analyses.refusals import guarded
from analyses.study import (
    Cell,
    Study,
    StudyError,
    StudyFolder,
    example_text,
    load_claims,
    load_preset,
    load_study,
    preset_names,
)
from analyses.study.base import near
from reports.claims import print_claims
from reports.comparison import DESCRIPTION
from reports.comparison.page import write_comparison
from reports.figures.front import front_lines, write_front
from reports.page import write_report
from reports.redraw_command import redraw_command

if TYPE_CHECKING:
    from analyses.running.executors import Engine
    from analyses.running.stopping import Stopping

DONE, CELLS_FAILED, BAD_USAGE = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 finished with failed cells, 2 bad usage or input, 3 a file could not be written or read, 130
        interrupted.
    """
    matplotlib.use("Agg")  # figures go into files, whatever the user's backend
    parser = parser_of(COMMANDS)
    options = parser.parse_args(arguments)
    if options.subcommand is None:
        parser.print_help()
        return BAD_USAGE
    command = COMMANDS[options.subcommand]
    try:
        if options.subcommand != "measure" and "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's mark
            raise StudyError(f"torchrun: only 'measure' shares its work among ranks, got {options.subcommand!r}")
        return guarded(lambda: command(options[options.subcommand]))
    except (StudyError, RecordsError) as error:
        print(f"landscape: error: {error}", file=sys.stderr)
        return BAD_USAGE


def init(options: Namespace) -> int:
    """Write a commented study: of the bundled digits, or of a model and data of one's own."""
    if (options.model is None) != (options.data is None):
        raise StudyError("--model, --data: give both, or none for a study of the bundled digits")
    for name in ("task", "input", "label"):
        if options.model is None and options[name] is not None:
            raise StudyError(f"--{name}: belongs to --model and --data; give both, too")
    if options.out.exists():
        raise StudyError(f"--out: {options.out} exists; give another file")
    if not os.access(options.out.resolve().parent, os.W_OK):
        raise StudyError(f"--out: cannot write {options.out}: no folder to write to; give another file")
    expected = None
    if options.model is None:
        text = example_text()
    else:
        from analyses.running.drafting import draft

        drafted = draft(options.model, options.data, kind=options.task, inputs=options.input, label=options.label)
        text, expected = drafted.text, drafted.estimate
    try:
        write_atomically(options.out, lambda temporary: temporary.write_text(text))
    except OSError as error:
        raise StudyError(f"--out: cannot write {options.out}: {error.strerror}") from error
    print(f"Study: {options.out}")
    if expected is not None:
        print(f"With 2 workers: {expected}; hours to a factor of two")
    print(f"Next: landscape audit --config {options.out}")
    return DONE


def audit(options: Namespace) -> int:
    """Train, measure, judge and report a whole study; what is done already is kept."""
    from analyses.running.audit import Outcome, planned, run_audit
    from analyses.running.engines import LOCAL_JOBS
    from analyses.running.estimating import estimate
    from analyses.running.preparing import check, refuse_changed_data
    from analyses.running.stopping import until_decided

    study, folder, engine = _study(options), _folder(options), _engine(options)
    methods = _chosen(study, options.methods) if options.methods else None
    stopping = _stopping(options, study)
    if options.dry_run:
        check(study)
        folder.refuse_others(study)
        refuse_changed_data(study, folder)
        for name, count in planned(study, folder).items():
            print(f"{count:>5}  {name}")
        workers = options.jobs or LOCAL_JOBS
        print(f"With {workers} workers: {estimate(study, folder, jobs=workers)}; hours to a factor of two")
        return DONE
    outcomes: list[Outcome] = []

    def audit_with(seeds: int) -> list[dict[str, Any]]:
        grown = study.model_copy(update={"seeds": seeds})
        outcomes.append(run_audit(grown, folder, engine=engine, methods=methods, stopping=stopping))
        claims: list[dict[str, Any]] = outcomes[-1].claims["claims"]
        return claims

    if stopping is None:
        audit_with(study.seeds)
    else:
        reached = load_study(folder.settings).seeds if folder.settings.exists() else 0
        until_decided(audit_with, stopping, study.seeds, reached=reached)
    outcome = outcomes[-1]
    page = write_report(folder.root)
    print_claims(read_json(folder.root / "claims.json"))
    if outcome.num_done_before == outcome.num_cells:
        print(f"All {outcome.num_cells} cells were done already.")
    for name, found in {"failed": outcome.failures, "diverged": outcome.diverged}.items():
        for failure in found:
            print(f"{name}: {failure.cell}: {failure.reason}", file=sys.stderr)
    print(f"Report: {page}")
    return CELLS_FAILED if outcome.failures else DONE


def train(options: Namespace) -> int:
    """Train one cell of a study into its run folder."""
    from analyses.running.audit import train_only
    from analyses.running.damage import set_damaged_base_aside, set_damaged_run_aside
    from analyses.running.engines import LOCAL_JOBS, LocalEngine
    from analyses.running.executors import run_cells
    from analyses.running.preparing import check, exclusive, prepare, refuse_changed_data
    from analyses.training.runs import read_run

    study, folder = _study(options), _folder(options)
    cell = Cell(options.method, options.seed, options.train_size or study.train_sizes[0])
    if cell.method not in study.methods:
        raise StudyError(
            f"--method: the study has {', '.join(study.methods)}; got {cell.method!r}{near(cell.method, study.methods)}"
        )
    if cell.seed < 0:
        raise StudyError(f"--seed: expected a whole number of at least 0, got {cell.seed}")
    check(study.model_copy(update={"train_sizes": [cell.train_size]}))
    with exclusive(study, folder):
        refuse_changed_data(study, folder)
        set_damaged_base_aside(study, folder)
        set_damaged_run_aside(study, folder, cell)
        prepare(study, folder)
        if not folder.run(study, cell).exists():
            for failure in run_cells([cell], partial(train_only, study), folder, LocalEngine(LOCAL_JOBS)):
                print(f"failed: {failure.cell}: {failure.reason}", file=sys.stderr)
                return CELLS_FAILED
    if reason := read_run(folder.run(study, cell)).get("diverged"):
        print(f"diverged: {cell}: {reason}", file=sys.stderr)
    print(folder.run(study, cell))
    return DONE


def measure(options: Namespace) -> int:
    """Measure finished runs with their own study's settings and print the records; under torchrun together."""
    from analyses.running.ranks import ranks_of_torchrun, together
    from analyses.running.single import measured

    names = _names(options.what)
    if options.csv and not Path(options.csv).parent.is_dir():
        raise StudyError(f"--csv: there is no folder {Path(options.csv).parent}; make it first")
    given = [name for name in ("adapter", "base", "data") if options[name] is not None]
    if given and ranks_of_torchrun() > 1:
        raise StudyError("--adapter: is measured in one process; run it without torchrun")
    if given:
        if options.runs or len(given) < 3:
            raise StudyError("--adapter, --base, --data: give all three and no run, or runs alone")
        return _measured_adapter(options, names or ["fit"])
    if not options.runs:
        raise StudyError("RUN: expected run folders, or --adapter, --base and --data")
    with together() as place:
        found = [measured(path, names, options.device, place) for path in options.runs]
    records = pd.concat(found, ignore_index=True)
    if not place.writes:
        return DONE
    if options.csv:
        records.to_csv(options.csv, index=False)
        print(options.csv)
    else:
        shown = records[records["layer"].fillna("all") == "all"].dropna(axis=1, how="all")
        print(shown.to_string(index=False, na_rep=""))
    return DONE


def _measured_adapter(options: Namespace, names: list[str]) -> int:
    """Inspect a plain PEFT adapter on a file's examples."""
    wanted = ["fit" if name == "generalization" else name for name in names]  # a comparison's word
    if unknown := sorted(set(wanted) - set(WHAT)):
        raise StudyError(f"--what: of an adapter expected some of {', '.join(WHAT)}; got {', '.join(unknown)}")
    asked = ["compare", f"{options.base}+{options.adapter}", "--data", options.data, "--what", *wanted]
    asked += ["--device", options.device] if options.device else []
    found = compare_places(parser_of(COMMANDS).parse_args(asked)["compare"])
    if options.csv:
        found.records.to_csv(options.csv, index=False)
        print(options.csv)
    else:
        print(found.to_markdown())
    for what, reason in found.failures.items():
        print(f"failed: {what}: {reason}", file=sys.stderr)
    return CELLS_FAILED if found.failures else DONE


def compare(options: Namespace) -> int:
    """Measure minima from anywhere side by side, and what lies between them; a single one is inspected."""
    found = compare_places(options)
    print(found.to_markdown())
    for what, reason in found.failures.items():
        print(f"failed: {what}: {reason}", file=sys.stderr)
    if options.out:
        print(f"Report: {options.out / 'report.html'}")
    return CELLS_FAILED if found.failures else DONE


def tune(options: Namespace) -> int:
    """Try the settings of the study's tuning section on its validation split and choose by rule."""
    from analyses.running.tuning import at_the_edge, best_settings, unfit, write_table
    from analyses.running.tuning import tune as try_all

    study, folder = _study(options), _folder(options)
    table, failures = try_all(study, folder, engine=_engine(options))
    path = folder.root / "tuning.csv"
    write_table(table, path)
    for failure in failures:
        print(f"failed: {failure.cell}: {failure.reason}", file=sys.stderr)
    assert study.tuning is not None  # a study without a tuning section is refused
    chosen, missed = best_settings(table, study.tuning, study.methods), unfit(table, study.tuning)
    for method, settings in chosen.items():
        print(f"{method}: {settings.model_dump(exclude_none=True, exclude={'clip'})}")
    for warning in at_the_edge(table, chosen):
        print(f"at the edge: {warning}")
    for sentence in missed:
        print(f"none fits: {sentence}", file=sys.stderr)
    untouched = [method for method in study.methods if method not in set(table["method"])]
    if untouched:
        print(f"not tuned, as they have no grid: {', '.join(untouched)}")
    if study.tuning.rise:
        for line in front_lines(table):
            print(line)
        print(f"Front: {write_front(table, folder.root / 'figures')}")
    print(f"Table: {path}")
    return CELLS_FAILED if failures or missed else DONE


def report(options: Namespace) -> int:
    """Judge the claims and draw figures, tables and the page again from the records of an audit or a comparison."""
    from analyses.judging.claims import claims_document
    from analyses.judging.correlation import rank_correlations
    from analyses.running.preparing import locked
    from analyses.running.stopping import LOOKS, recorded_looks

    if options.figures:
        return redraw_command(options)
    if options.format:
        raise StudyError("--format: only the figures that --figures names have formats to choose from; give both")
    records = options.directory / "records.parquet"
    if not records.is_file():
        raise StudyError(f"DIR: {options.directory} holds no records.parquet; run 'landscape audit' first")
    with locked(StudyFolder(options.directory), "DIR"):
        if (options.directory / DESCRIPTION).is_file():
            if options.claims:
                raise StudyError(f"--claims: {options.directory} is a comparison, of which no claims are judged")
            print(f"Report: {write_comparison(options.directory)}")
            return DONE
        own = options.directory / "study.yaml"
        if not own.is_file():
            raise StudyError(
                f"DIR: {options.directory} holds no study.yaml beside its records; put the study's file there"
            )
        study = _with_claims(load_study(own, option="DIR"), options.claims)
        if options.claims:
            StudyFolder(options.directory).write(study)  # the claims stay with the folder
        settings = study.claims
        looks = recorded_looks(options.directory / LOOKS, settings)
        measured = read_records(records)
        write_json(options.directory / "claims.json", claims_document(measured, settings, looks))
        if settings.rank_correlations:
            write_json(options.directory / "correlations.json", rank_correlations(measured, study))
        print(f"Report: {write_report(options.directory)}")
    return DONE


def presets(options: Namespace) -> int:
    """List the bundled studies."""
    for name in preset_names():
        study = load_preset(name)
        print(f"{name}: {study.task.name}, {len(study.methods)} methods × {study.seeds} seeds")
    return DONE


def methods(options: Namespace) -> int:
    """List the fine-tuning methods."""
    from bilora import METHODS

    width = max(len(name) for name in METHODS)
    for name, method in METHODS.items():
        passes = f"{method.passes_per_step:g} {'pass' if method.passes_per_step == 1 else 'passes'} a step"
        print(f"{name:<{width}}  {passes:<18}  {method.summary}")
    return DONE


COMMANDS = {
    "init": init,
    "audit": audit,
    "train": train,
    "measure": measure,
    "compare": compare,
    "tune": tune,
    "report": report,
    "presets": presets,
    "methods": methods,
}


def _study(options: Namespace) -> Study:
    if (options.preset is None) == (options.config is None):
        raise StudyError("give either --preset NAME or --config FILE")
    study = load_preset(options.preset) if options.preset else load_study(options.config)
    changes: dict[str, object] = {}
    if options.get("seeds") is not None:
        changes["seeds"] = options.seeds
    if options.get("device"):
        changes["device"] = options.device
    try:
        changed = Study.model_validate(study.model_dump() | changes)
        return _with_claims(changed, options.get("claims"))
    except ValidationError as error:
        problem = error.errors()[0]
        raise StudyError(f"--{problem['loc'][0]}: {problem['msg']} (got {problem['input']!r})") from None


def _with_claims(study: Study, path: Path | None) -> Study:
    if path is None:
        return study
    return study.model_copy(update={"claims": study.claims.model_copy(update={"file": load_claims(path)})})


def _stopping(options: Namespace, study: Study) -> Stopping | None:
    from analyses.running.stopping import Stopping

    if not options.until_decided:
        for name in ("max_seeds", "hours"):
            if options[name] is not None:
                raise StudyError(f"--{name.replace('_', '-')}: belongs to --until-decided; add that")
        return None
    if options.max_seeds is None:
        raise StudyError(f"--max-seeds: --until-decided needs it, {2 * study.seeds} say: the level is spent on the way")
    if options.hours is not None and options.hours <= 0:
        raise StudyError(f"--hours: expected a time above 0, got {options.hours:g}")
    if options.max_seeds < study.seeds:
        raise StudyError(f"--max-seeds: expected at least the study's {study.seeds} seeds, got {options.max_seeds}")
    return Stopping(options.max_seeds, hours=options.hours)


def _chosen(study: Study, given: list[str]) -> list[str]:
    names = _names(given)
    for name in names:
        if name not in study.methods:
            known = ", ".join(study.methods)
            raise StudyError(f"--methods: the study has {known}; got {name!r}{near(name, study.methods)}")
    return names


def _names(given: list[str] | None) -> list[str]:
    """Names from the command line, with spaces or commas between them."""
    return [name for part in given or [] for name in part.split(",") if name]


def _engine(options: Namespace) -> Engine:
    from analyses.running.engines import engine_of

    return engine_of(
        options.executor,
        jobs=options.jobs,
        cpus=options.cpus_per_cell,
        gpus=options.gpus_per_cell,
        slurm=options.slurm or [],
    )


def _folder(options: Namespace) -> StudyFolder:
    return StudyFolder(options.out or Path("results") / _study(options).name)


if __name__ == "__main__":
    sys.exit(main())
