"""What the command line takes."""

from __future__ import annotations

from argparse import HelpFormatter
from collections.abc import Callable, Mapping
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from analyses.comparing.request import add_compare_arguments
from analyses.study.data_settings import DATA_KINDS
from reports.redraw_command import add_report_arguments


def parser_of(commands: Mapping[str, Callable[[Namespace], int]]) -> ArgumentParser:
    """The parser of all commands; a command's docstring is what its help says."""
    parser = ArgumentParser(
        prog="landscape",
        description="Audit the broader-sharpness claim of Bi-LoRA: train, measure, judge, report.",
        epilog="Exit codes: 0 done, 1 finished with failed cells, 2 bad usage or input, 3 a file could not be "
        "written or read, 130 interrupted.",
        allow_abbrev=False,
        formatter_class=HelpFormatter,  # jsonargparse's adds the names of Python types
    )
    subcommands = parser.add_subcommands(required=False)
    for name, command in commands.items():
        sub = ArgumentParser(description=command.__doc__, allow_abbrev=False, formatter_class=HelpFormatter)
        if name == "init":
            sub.add_argument("--model", type=str, help="folder of a Hugging Face model, or its name on the hub")
            sub.add_argument("--data", type=str, help="CSV, JSON lines, Parquet, .npz, image folder or saved data set")
            sub.add_argument("--task", type=str, choices=DATA_KINDS, help="what to learn (default: told from the data)")
            sub.add_argument("--input", type=str, help="column of the input")
            sub.add_argument("--label", type=str, help="column of the label")
            sub.add_argument("--out", type=Path, default=Path("study.yaml"), help="file to write (default: study.yaml)")
        if name in ("audit", "train", "tune"):
            sub.add_argument("--preset", type=str, help="name of a bundled study; see 'landscape presets'")
            sub.add_argument("--config", type=Path, help="YAML file of a study of your own")
            sub.add_argument("--out", type=Path, help="folder for the results (default: results/NAME)")
        if name == "audit":
            sub.add_argument("--seeds", type=int, help="number of paired seeds instead of the study's")
            sub.add_argument(
                "--until-decided",
                "--until_decided",
                action="store_true",
                help="add seeds in blocks until every outcome claim is decided, at a level that allows for the looks",
            )
            sub.add_argument("--max-seeds", "--max_seeds", type=int, help="most seeds with --until-decided")
            sub.add_argument("--hours", type=float, help="begin no further block after so many hours")
            sub.add_argument(
                "--dry-run", "--dry_run", action="store_true", help="say what is left to do, and do nothing"
            )
            sub.add_argument(
                "--methods", type=str, nargs="+", help="work on these of the study's methods only (default: all)"
            )
        if name in ("audit", "train", "tune", "measure", "compare"):
            sub.add_argument("--device", type=str, help="auto, cpu, cuda or cuda:N instead of the study's")
        if name in ("audit", "report"):
            sub.add_argument("--claims", type=Path, help="YAML file of claims in place of the study's")
        if name in ("audit", "tune"):
            _add_engine_arguments(sub)
        if name == "train":
            sub.add_argument("--method", type=str, required=True, help="one of the study's methods")
            sub.add_argument(
                "--seed", type=int, default=0, help="of the adapter and the order of the data (default: 0)"
            )
            sub.add_argument(
                "--train-size", "--train_size", type=int, help="training examples (default: the study's first)"
            )
        if name == "measure":
            sub.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="run folders, DIR/runs/NAME")
            sub.add_argument(
                "--adapter", type=str, help="folder of a plain PEFT adapter in place of runs; see 'compare'"
            )
            sub.add_argument("--base", type=str, help="folder of the model under it")
            sub.add_argument("--data", type=str, help="file of examples to measure it on")
            sub.add_argument(
                "--what",
                type=str,
                nargs="+",
                help="measures: generalization, sharpness, curvature, alignment, … (default: all but pictures)",
            )
            sub.add_argument("--csv", type=Path, help="write all records there instead of printing a summary")
        if name == "compare":
            add_compare_arguments(sub)
        if name == "report":
            add_report_arguments(sub)
        subcommands.add_subcommand(name, sub, help=_summary(command.__doc__))
    return parser


def _add_engine_arguments(sub: ArgumentParser) -> None:
    sub.add_argument(
        "--executor",
        type=str,
        choices=("joblib", "sequential", "ray", "slurm"),
        default="joblib",
        help="processes of this machine, this very process, the Ray cluster of RAY_ADDRESS, or Slurm by submitit",
    )
    sub.add_argument(
        "--jobs", type=int, help="most cells at a time, one thread each (default: 2 here, as many as fit elsewhere)"
    )
    sub.add_argument(
        "--cpus-per-cell",
        "--cpus_per_cell",
        type=int,
        default=1,
        help="processors that Ray or Slurm reserves (default: 1)",
    )
    sub.add_argument(
        "--gpus-per-cell", "--gpus_per_cell", type=float, default=0.0, help="GPUs reserved; for Ray also a part of one"
    )
    sub.add_argument(
        "--slurm",
        type=str,
        nargs="+",
        metavar="KEY=VALUE",
        help="settings of Slurm by submitit's names: timeout_min=60 slurm_partition=gpu mem_gb=8, cluster=local to try",
    )


def _summary(text: str | None) -> str:
    return (text or "").split("\n")[0].rstrip(".")
