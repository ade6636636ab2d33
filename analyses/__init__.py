"""The audit: studies made of cells, measured into records, judged as claims; and minima compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyses import _installed  # noqa: F401

if TYPE_CHECKING:
    from analyses.comparing import Comparison, compare

__all__ = ["Comparison", "compare"]


def __getattr__(name: str) -> Any:
    """Comparing needs torch and transformers, which those who read records alone do not wait for."""
    if name in __all__:
        from analyses import comparing

        return getattr(comparing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
