"""The command ``landscape``: what draws from records alone does not wait for torch and transformers."""

from __future__ import annotations

import sys

_LIGHT = "--figures"


def main() -> int:
    """Run one command; see `analyses.cli`."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["report"] and any(one.split("=")[0] == _LIGHT for one in arguments):
        from analyses.refusals import guarded
        from reports.redraw_command import main as redraw

        return guarded(lambda: redraw(arguments[1:]))
    from analyses.cli import main as run

    return run()
