"""Broken inputs for every reader: settings, claims, data, run folders and records.

Each target takes a valid input that hypothesis has changed in a few places, in its structure or in its bytes, and may
end well or with the error that it documents; anything else is an escape. `test_fuzzing` tries some hundred a target;

    FUZZ_INPUTS=15000 pytest tests/reliability/test_fuzzing.py -n 2

tries as many of each.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

_TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "", " ", "auto", "cuda:99", "../../etc/passwd", "/dev/null", "os:system", "a:b", ":", "nan", "inf", "-1",
            "1e999", "2001-99-99", "!!python/object:os.system", "\x00", "{{ 7*7 }}", "<script>", "(", "a" * 5000,
        ]
    ),
)  # fmt: skip
_NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(), st.floats(), st.sampled_from([10**400, -(10**20), 2**63, 1e308, 5e-324, -0.0])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXTS | st.integers(), inner, max_size=4)),
    max_leaves=8,
)
"""Whatever YAML can hold."""


def places(document: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a document has values, from the root on."""
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [here, *(place for key, value in inside for place in places(value, (*here, key)))]


@st.composite
def changed(draw: st.DrawFn, documents: list[Any]) -> Any:
    """One of the documents with up to three values put elsewhere, left out, renamed or replaced by anything."""
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(places(document)))
        if not place:
            if draw(st.integers(0, 20)) == 0:
                return draw(VALUES)
            continue
        parent = document
        for key in place[:-1]:
            parent = parent[key]
        key = place[-1]
        how = draw(st.sampled_from(["replace", "replace", "leave out", "rename", "wrap", "double"]))
        if how == "replace":
            parent[key] = draw(VALUES)
        elif how == "leave out":
            del parent[key]
        elif how == "wrap":
            parent[key] = [parent[key]]
        elif isinstance(parent, dict):
            name = draw(_TEXTS)
            parent[name] = copy.deepcopy(parent[key]) if how == "double" else parent.pop(key)
        else:
            parent.append(copy.deepcopy(parent[key]))
    return document


@st.composite
def damaged(draw: st.DrawFn, contents: list[bytes]) -> bytes:
    """One of the contents with bytes changed, cut out, doubled or put in."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(1, 64))
        how = draw(st.sampled_from(["change", "cut", "end", "insert", "double"]))
        if how == "change":
            content[at : at + length] = draw(st.binary(min_size=1, max_size=8))
        elif how == "cut":
            del content[at : at + length]
        elif how == "end":
            del content[at:]
        elif how == "insert":
            content[at:at] = draw(st.binary(max_size=16))
        else:
            content[at:at] = content[at : at + length]
    return bytes(content)


def as_json(document: Any) -> bytes:
    """A document as JSON, numbers that JSON has no words for included."""
    return json.dumps(document).encode()
