"""What is written as YAML is read again as it was, by libyaml and by Python's own reader, which reads recipes."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slime_core.yaml_text import from_yaml, to_yaml

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t #:-'\"{}[]&*!|>%@`"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_values_come_back_from_both_readers(value: object) -> None:
    text = to_yaml(value)
    assert from_yaml(text) == value
    assert yaml.safe_load(text) == value


@pytest.mark.parametrize(
    "word", ["yes", "no", "null", "~", "1e3", "0x10", "1_000", "2026-11-27", "=", "<<", "", " ", "a: b", "😀", "ü"]
)
def test_words_that_yaml_takes_for_something_else_stay_words(word: str) -> None:
    assert from_yaml(to_yaml({word: [word]})) == yaml.safe_load(to_yaml({word: [word]})) == {word: [word]}


def test_names_keep_their_order() -> None:
    assert list(from_yaml(to_yaml({"b": 1, "a": 2, "c": 3}))) == ["b", "a", "c"]
