"""`f1` is SQuAD's measure."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import DataError
from slime_core.sample import Sample
from slime_rewards.f1 import f1, token_f1, words


def score(response: str, label: Any) -> float:
    return asyncio.run(f1(SimpleNamespace(), Sample(index=3, response=response, label=label)))


@pytest.mark.parametrize(
    ("answer", "label", "precision", "recall"),
    [
        ("the Eiffel Tower!", "Eiffel tower", 1, 1),
        ("in the tower", "tower", 1 / 2, 1),
        ("tower tower tower", "a tower", 1 / 3, 1),
        ("big red dog", "red dog ran off", 2 / 3, 2 / 4),
        ("über Köln", "Über Köln", 1, 1),
    ],
)
def test_it_is_the_harmonic_mean_of_precision_and_recall(
    answer: str, label: str, precision: float, recall: float
) -> None:
    assert score(answer, label) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-15)


@pytest.mark.parametrize(
    ("answer", "label", "expected"),
    [
        *(("cat", "dog", 0), ("", "dog", 0), ("the", "a", 0), ("the", "the", 0)),
        *(
            ("yes", "Yes.", 1),
            ("no", "yes", 0),
            ("yes, it is", "yes", 0),
            ("yes", "yes, it is", 0),
            ("noanswer", "no", 0),
        ),
        *(("12.5", "125", 0), ("12.5", "12.5", 1), ("1,000", "1000", 1), ("3/4", "34", 0), ("10:30", "1030", 0)),
        *(("-7", "7", 0), ("(-7)", "-7", 1), ("$5", "5", 1), ("7.", "7", 1), ("1.2.", "1.2", 1), ("1, 2", "12", 0)),
        *(("34", 34, 1), ("34", 34.0, 1), ("2.5", 2.5, 1), ("北京", "北京", 1), ("well-known", "wellknown", 1)),
    ],
)
def test_numbers_and_short_answers(answer: str, label: Any, expected: float) -> None:
    assert score(answer, label) == expected


def test_the_best_of_several_labels_counts() -> None:
    assert score("red dog", ["cat", "dog", "red"]) == pytest.approx(2 / 3)


@given(st.text("ab the,.", max_size=30), st.text("ab the,.", max_size=30))
def test_it_is_symmetric_and_bounded(one: str, other: str) -> None:
    assert token_f1(one, other) == token_f1(other, one)
    assert 0.0 <= token_f1(one, other) <= 1.0
    assert token_f1(one, one) == (1.0 if words(one) else 0.0)


@pytest.mark.parametrize("label", [None, "", [], ["dog", None], {"a": 1}, float("inf")])
def test_a_label_that_cannot_be_compared_with_is_an_error(label: Any) -> None:
    with pytest.raises(DataError, match="sample 3"):
        score("dog", label)
