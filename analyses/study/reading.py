"""YAML as studies are written in it: read safely, and no key twice."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


class _Reader(yaml.SafeLoader):
    """The safe reader, which also refuses a mapping with one key twice: the later value would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if isinstance(key, Hashable) and key_node.tag != "tag:yaml.org,2002:merge":
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        "in a mapping", node.start_mark, f"the key {key!r} stands twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """What a text in YAML says.

    Raises:
        yaml.YAMLError: It is none, or a mapping has one key twice.

    >>> read_yaml("a: 1")
    {'a': 1}
    """
    reader = _Reader(text)
    try:
        return reader.get_single_data()  # type: ignore[no-untyped-call]
    finally:
        reader.dispose()  # type: ignore[no-untyped-call]
