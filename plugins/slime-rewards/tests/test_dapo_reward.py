"""`dapo` scores the last "Answer:" line by text."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from slime_core.errors import DataError
from slime_core.sample import Sample
from slime_rewards.dapo import dapo, normalise


def score(response: str, label: Any) -> dict[str, Any]:
    return asyncio.run(dapo(SimpleNamespace(), Sample(index=3, response=response, label=label)))


@pytest.mark.parametrize(
    ("response", "label", "answer"),
    [
        ("Answer: 42", "42", "42"),
        ("answer :  $42$.", "42", "42"),
        ("Answer: 1\nno\nANSWER: 2", 2, "2"),
        ("Answer: $x = \\frac12$", "\\frac{1}{2}", "\\frac{1}{2}"),
        ("Answer: \\boxed{1,234}", "1234", "1234"),
        ("Answer: 5 cm", "5", "5"),
        ("Answer: 90^\\circ", "90", "90"),
        ("Answer: \\text{north}", "north", "north"),
        ("Answer: \\sqrt2", "\\sqrt{2}", "\\sqrt{2}"),
        ("Answer: 三", "三", "三"),
    ],
)
def test_the_right_answer_gets_1(response: str, label: Any, answer: str) -> None:
    assert score(response, label) == {"score": 1.0, "acc": True, "pred": answer}


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Answer: 43", "43"),
        ("Answer: 42\nAnswer: 43", "43"),
        ("42", "[INVALID]"),
        ("", "[INVALID]"),
        ("Answer: 42" + " and so on" * 40, "[INVALID]"),
    ],
)
def test_anything_else_gets_minus_1(response: str, answer: str) -> None:
    assert score(response, "42") == {"score": -1.0, "acc": False, "pred": answer}


def test_normalising_twice_changes_nothing_more() -> None:
    for text in ("a square of 5 cm", "x=\\frac12", "\\text{s}", "$3$", "1,000", "an apple"):
        assert normalise(normalise(text)) == normalise(text)


def test_a_sample_without_label_is_an_error() -> None:
    with pytest.raises(DataError, match="sample 3"):
        score("Answer: 1", None)
