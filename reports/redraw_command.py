"""``landscape report DIR --figures NAME …``: single figures, from records alone."""

from __future__ import annotations

import sys
from argparse import HelpFormatter
from pathlib import Path

import matplotlib
from jsonargparse import ArgumentParser, Namespace

from reports.redraw import redraw
from reports.style import FORMATS

DONE, BAD_USAGE = 0, 2


def add_report_arguments(parser: ArgumentParser) -> None:
    """The folder, and which figures of it are wanted."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of a finished audit")
    parser.add_argument(
        "--figures", type=str, nargs="+", help="draw these figures alone, or all, in seconds and without a page"
    )
    parser.add_argument("--format", type=str, help="formats of these figures, with commas between (default: all three)")


def redraw_command(options: Namespace) -> int:
    """Draw the figures and print their paths."""
    formats = options.format.split(",") if options.format else FORMATS
    try:
        for path in redraw(options.directory, [name for part in options.figures for name in part.split(",")], formats):
            print(path)
    except ValueError as error:
        print(f"landscape: error: {error}", file=sys.stderr)
        return BAD_USAGE
    return DONE


def main(arguments: list[str]) -> int:
    """The command by itself."""
    matplotlib.use("Agg")
    parser = ArgumentParser(
        prog="landscape report", description=__doc__, allow_abbrev=False, formatter_class=HelpFormatter
    )
    add_report_arguments(parser)
    return redraw_command(parser.parse_args(arguments))
