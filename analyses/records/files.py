"""Folders that are whole or absent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analyses.records.integrity import seal_folder

_TEMPORARY = ".tmp-"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_TEMPORARY))
    try:
        yield temporary
        temporary.chmod(0o755)
        seal_folder(temporary)
        # A worker of a killed audit may have finished this folder meanwhile: the same content, so either will do.
        if not path.exists():
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Delete temporary folders that killed processes left under ``root``."""
    for leftover in root.glob(f"*/{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
