"""What the machine refuses, whatever the command: a full disk, a read-only folder, too many open files."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from safetensors import SafetensorError

_OUTSIDE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE)
NO_FILE, INTERRUPTED, NO_READER = 3, 130, 141


def guarded(command: Callable[[], int]) -> int:
    """A command's status; where the machine refuses or the user interrupts, one sentence and a status of its own.

    Who reads what is printed may stop early (``| head``): that ends the command without a word.
    """
    try:
        with _ended_like_interrupted():
            status = command()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return NO_READER
    except (OSError, SafetensorError) as error:
        refused = refusal(error)
        if refused is None:
            raise
        print(
            f"landscape: error: {refused}; what is finished is kept, and the same command goes on from there when this "
            "is mended",
            file=sys.stderr,
        )
        return NO_FILE
    except KeyboardInterrupt:
        print("\nlandscape: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


@contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """Inside, a batch system's or a closing terminal's signal ends the work as Ctrl-C does: with its workers and jobs.

    Not where it is ignored (nohup) or a caller has its own way.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    own = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():  # the only one that may set them
        own = []
    for one in own:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in own:
            signal.signal(one, signal.SIG_DFL)


def _nobody_reads() -> bool:
    """Whether the output's other end is closed; then what is left of it goes nowhere."""
    ends = select.poll()
    ends.register(sys.stdout.fileno(), 0)
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in ends.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


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
