"""Folders that are whole or absent."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analyses.records.atomic import TEMPORARY, to_disk
from analyses.records.integrity import seal_folder


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=TEMPORARY))
    try:
        yield temporary
        temporary.chmod(0o755)
        seal_folder(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                to_disk(file)
        # A worker of a killed audit may have finished this folder meanwhile: the same content, so either will do.
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Delete what killed processes left unfinished under ``root``: in it, in its rooms and a run's measurements."""
    for depth in ("", "*/", "*/*/", "*/*/.sums/"):
        for leftover in root.glob(f"{depth}{TEMPORARY}*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
