"""`exact_match` compares whole texts."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from slime_core.errors import DataError
from slime_core.plugins import Plugins
from slime_core.sample import Sample
from slime_rewards.exact_match import exact_match


def score(response: str, label: object) -> float:
    return asyncio.run(exact_match(SimpleNamespace(), Sample(index=3, response=response, label=label)))


@pytest.mark.parametrize(
    ("response", "label"),
    [("Paris", "Paris"), (" paris\n", "Paris"), ("New \n York", "new york"), ("cafe\u0301", "café"), ("7", 7)],
)
def test_equal_texts_count(response: str, label: object) -> None:
    assert score(response, label) == 1.0


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("Paris, France", "Paris"),
        ("", "Paris"),
        ("Par is", "Paris"),
        ("Paris.", "Paris"),
        ("x2", "x²"),
        ("café", "cafe"),
    ],
)
def test_different_texts_do_not(response: str, label: object) -> None:
    assert score(response, label) == 0.0


def test_a_sample_without_label_is_an_error() -> None:
    with pytest.raises(DataError, match="sample 3"):
        score("Paris", None)


def test_both_rewards_are_found_by_name_and_keep_the_contract() -> None:
    plugins = Plugins()
    for name in ("exact_match", "final_answer"):
        assert asyncio.run(plugins.select("reward", name)(SimpleNamespace(), Sample(response="7", label="7"))) == 1.0
