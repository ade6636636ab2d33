"""Checksums of what a study keeps: a file that a disk or a copy has changed is found before it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from analyses.records.atomic import write_atomically

SUMS = "SHA256SUMS"
"""In a finished folder, as ``sha256sum -c`` reads it."""
_BESIDE = ".sums"
_SEAL = ".sha256"
_PIECE = 2**20


def write_sealed(path: Path, write: Callable[[Path], object]) -> None:
    """`write_atomically`, and the file's checksum in a folder beside it."""
    write_atomically(path, write)
    digest = _digest(path)
    write_atomically(_seal(path), lambda temporary: temporary.write_text(digest))


def seal_folder(folder: Path) -> None:
    """Write the checksums of all files of a folder into it."""
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder)]
    (folder / SUMS).write_text("".join(lines))


def is_damaged(path: Path) -> bool:
    """Whether a sealed file, or a file of a sealed folder, is missing or not what was written; without a seal, no.

    A folder whose list of checksums is empty is damaged: a power cut lost what was in it.
    """
    if path.is_dir():
        sums = path / SUMS
        if not sums.is_file():
            return False
        lines = sums.read_text(errors="replace").splitlines()
        return not lines or any(_differs(path / name, digest) for digest, name in map(_entry, lines))
    seal = _seal(path)
    return seal.is_file() and _differs(path, seal.read_text(errors="replace"))


def sealed_names(folder: Path) -> set[str]:
    """Names of the files of a folder that have seals beside it, whether they are still there or not."""
    return {seal.name.removesuffix(_SEAL) for seal in (folder / _BESIDE).glob(f"[!.]*{_SEAL}")}


def remove_seal(path: Path) -> None:
    """Forget what was written to a file, which is no longer to be there."""
    _seal(path).unlink(missing_ok=True)


def _entry(line: str) -> tuple[str, str]:
    digest, _, name = line.partition("  ")
    return digest, name


def _differs(path: Path, digest: str) -> bool:
    return not path.is_file() or _digest(path) != digest


def _seal(path: Path) -> Path:
    return path.parent / _BESIDE / f"{path.name}{_SEAL}"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SUMS)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
