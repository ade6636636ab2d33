"""YAML as studies are written in it: read safely, and no key twice."""

from __future__ import annotations

from typing import Any

import yaml


def read_yaml(text: str) -> Any:
    """What a text in YAML says; ``<<: *anchor`` takes over the keys of another mapping, which its own replace.

    Raises:
        yaml.YAMLError: It is none, or a mapping has one key twice: the later value would win without a word.

    >>> read_yaml("a: 1")
    {'a': 1}
    """
    reader = yaml.SafeLoader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None
        _check_keys(node, set())
        return reader.construct_document(node)
    finally:
        reader.dispose()


def _check_keys(node: yaml.Node, seen: set[int]) -> None:
    """Refuse a mapping that says one key twice, here or inside; before merges, which repeat keys on purpose."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _check_keys(inner, seen)
    if isinstance(node, yaml.MappingNode):
        keys: set[tuple[str, str]] = set()
        for key, value in node.value:
            _check_keys(key, seen)
            _check_keys(value, seen)
            said = (key.tag, str(key.value))
            if isinstance(key, yaml.ScalarNode) and said in keys:
                raise yaml.constructor.ConstructorError(
                    "in a mapping", node.start_mark, f"the key {key.value!r} stands twice", key.start_mark
                )
            keys.add(said)
