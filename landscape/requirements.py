"""Packages that parts of the toolkit need beyond torch, numpy and scipy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec


def require(part: str, packages: Sequence[str], *, extra: str) -> None:
    """Say which packages a part lacks, and how to install them.

    Raises:
        ImportError: Some are not installed.

    >>> require("landscape", ["torch"], extra="train")
    """
    missing = [name for name in packages if (sys.modules[name] is None if name in sys.modules else not find_spec(name))]
    if missing:
        raise ImportError(
            f"{part} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            f"pip install 'bilora-landscape[{extra}]'"
        )
