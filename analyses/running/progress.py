"""Progress of cells in other processes, passed through small files and shown as bars."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

_INTERVAL = 0.5


class ProgressFile:
    """What one worker is doing, written at most twice a second.

    Args:
        folder: Where the files lie.
        cell: Name of the cell at work.
        main_process: Process that waits for the cell.
    """

    def __init__(self, folder: Path, cell: str, main_process: int) -> None:
        self._path, self._cell, self._last = folder / f"{cell}.json", cell, 0.0
        self._main_process = main_process if os.getppid() == main_process else None

    def stage(self, name: str) -> Callable[[int, int], None]:
        """A callback ``(step, total)`` for one stage of the cell."""

        def update(step: int, total: int) -> None:
            if self._main_process not in (None, os.getppid()):
                os._exit(1)  # the audit was killed: nobody waits for this cell, and another audit may redo it
            now = time.monotonic()
            if now - self._last >= _INTERVAL:
                self._last = now
                line = json.dumps({"cell": self._cell, "stage": name, "step": step, "total": total})
                with suppress(OSError):  # a disk that is full, or gone for a moment, is no reason to end the cell
                    self._path.write_text(line)

        return update

    def close(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


class ProgressBars:
    """A bar over all cells with the time left, and one line for each cell at work.

    One thread draws, within tqdm's lock: where nobody reads any more, tqdm's own refreshing would keep that lock for
    good. The cells go on then, without bars.
    """

    def __init__(self, folder: Path, total: int, workers: int) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.json"):
            stale.unlink(missing_ok=True)
        self._cells = tqdm(total=total, desc="cells", unit="cell", position=0, dynamic_ncols=True)
        self._lines = [
            tqdm(total=0, position=1 + i, bar_format="  {desc}", leave=False, dynamic_ncols=True)
            for i in range(workers)
        ]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProgressBars:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for bar in (*self._lines, self._cells):
            with suppress(BrokenPipeError):
                bar.close()

    def cell_done(self) -> None:
        """One more cell is finished, well or not."""
        self._cells.n += 1

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            states = []
            for path in sorted(self._folder.glob("[!.]*.json")):
                try:
                    states.append(json.loads(path.read_text()))
                except (OSError, ValueError):  # finished or being written at this moment
                    continue
            for index, line in enumerate(self._lines):
                text = "{cell}: {stage} {step}/{total}".format(**states[index]) if index < len(states) else ""
                line.set_description_str(text, refresh=False)
            try:
                with tqdm.get_lock():
                    for bar in (*self._lines, self._cells):
                        bar.refresh(nolock=True)
            except BrokenPipeError:
                return
