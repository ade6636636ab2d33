"""Files of a study between machines that share no disk."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from analyses.records.integrity import SUMS


def packed(root: Path, names: Iterable[str]) -> bytes:
    """Some files and folders of a folder as one archive; those that are not there are left out."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in names:
            if (root / name).exists():
                tar.add(root / name, arcname=name)
    return archive.getvalue()


def unpack(archive: bytes, root: Path) -> None:
    """Put an archive's files where they belong in a folder: sealed folders and single files are whole or absent.

    What is there already stays: it is the same content, made from the same settings.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".tmp-") as place:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(place, filter="data")
        _settle(Path(place), root)


def _settle(come: Path, root: Path) -> None:
    # Hidden entries last: a seal comes after the file that it seals.
    for path in sorted(come.iterdir(), key=lambda path: (path.name.startswith("."), path.name)):
        there = root / path.name
        if there.exists() and not (path.is_dir() and there.is_dir()):
            continue
        if path.is_dir() and not (path / SUMS).exists():
            there.mkdir(exist_ok=True)
            _settle(path, there)
        elif not there.exists():
            path.rename(there)
