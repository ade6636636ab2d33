"""Bars that nobody reads any more do not hold up the cells."""

import io
import threading
from pathlib import Path

import pytest

from analyses.running import progress
from analyses.running.progress import ProgressBars, ProgressFile


class Pipe(io.StringIO):
    """A stream whose reader may leave."""

    left = False

    def write(self, text: str) -> int:
        if self.left:
            raise BrokenPipeError
        return super().write(text)


def test_cells_go_on_when_the_reader_of_the_bars_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, done = Pipe(), threading.Event()
    monkeypatch.setattr("sys.stderr", pipe)
    monkeypatch.setattr(progress, "_INTERVAL", 0.02)

    def cells() -> None:
        with ProgressBars(tmp_path, total=40, workers=2) as bars:
            for number in range(40):
                ProgressFile(tmp_path, f"cell{number}", 0).stage("train")(number, 40)
                pipe.left = number >= 20
                threading.Event().wait(0.02)
                bars.cell_done()
        done.set()

    threading.Thread(target=cells, daemon=True).start()
    assert done.wait(20)
    assert "cells:" in pipe.getvalue() and "train 1" in pipe.getvalue()
