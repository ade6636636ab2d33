"""What the machine refuses, whatever the command: a full disk, a read-only folder, too many open files."""

from __future__ import annotations

import errno

from safetensors import SafetensorError

_OUTSIDE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE)


def refusal(error: Exception) -> str | None:
    """What was refused, in words; none for errors that are not the machine's.

    >>> refusal(OSError(errno.ENOSPC, "No space left on device", "out/records.parquet"))
    'out/records.parquet: No space left on device'
    >>> refusal(OSError(errno.ENOENT, "No such file"))
    """
    if isinstance(error, OSError) and error.errno in _OUTSIDE:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    if isinstance(error, SafetensorError) and "I/O error" in str(error):
        return str(error)
    return None
