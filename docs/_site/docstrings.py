"""Docstrings as the reference shows them: doctests are blocks of code, where Markdown sees quotations; maths too."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

_DOCTEST = re.compile(r"^([ ]*)>>> .*(?:\n(?!\s*$).*)*", re.M)
_MATHS = re.compile(r":math:(`[^`]*`)", re.S)
_FORMULA = re.compile(r"^[ ]*[.]{2} math:: (.*)$", re.M)


class Readable(Extension):
    """Fence every doctest, and set formulas as they are written."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Change the text of an object's docstring."""
        if obj.docstring is not None:
            text = _FORMULA.sub(r"`\1`", _MATHS.sub(r"\1", obj.docstring.value))
            obj.docstring.value = _DOCTEST.sub(_fenced, text)


def _fenced(found: re.Match[str]) -> str:
    return f"{found[1]}```pycon\n{found[0]}\n{found[1]}```"
