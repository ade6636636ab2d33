"""YAML of studies: keys taken over from anchors, and keys that stand twice."""

from __future__ import annotations

import pytest
import yaml

from analyses.study.reading import read_yaml


def test_keys_are_taken_over_from_an_anchor_and_replaced() -> None:
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\nc: [*a, {<<: [*a, {z: 0}], x: 9}]\n"
    assert read_yaml(text) == yaml.safe_load(text)
    assert read_yaml(text)["b"] == {"x": 1, "y": 3}


def test_an_anchor_that_itself_takes_over_may_be_taken_over_further_out() -> None:
    text = "z: &z {k: 0}\nx: {inner: &a {<<: *z, k: 1}}\nb: {<<: *a}\n"
    assert read_yaml(text) == {"z": {"k": 0}, "x": {"inner": {"k": 1}}, "b": {"k": 1}}


@pytest.mark.parametrize("text", ["a: 1\na: 2", "x: [{a: 1, b: 2, a: 3}]", "a: &a {b: 1, b: 2}\nc: {<<: *a}"])
def test_a_key_that_stands_twice_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=r"the key '[ab]' stands twice[\s\S]*line"):
        read_yaml(text)


def test_an_empty_text_says_nothing() -> None:
    assert read_yaml("") is None and read_yaml("# a comment\n") is None
