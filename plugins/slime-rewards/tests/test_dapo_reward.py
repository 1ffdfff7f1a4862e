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
        ("**Answer:** 42", "42", "42"),
        ("**Answer**: 42", "42", "42"),
        ("Answer: **42**", "42", "42"),
        ("Answer: 42.", "42", "42"),
        ("Answer:\n\n42", "42", "42"),
        ("Answer: $42$.", "42", "42"),
        (r"Answer: \(42\)", "42", "42"),
        ("Answer: 42", 42.0, "42"),
        ("Answer: 42", "042", "42"),
        ("Answer: 42", "42.0", "42"),
        ("Answer: 042", "42", "42"),
        ("Answer: -5", "-5", "-5"),
        ("Answer: 3.50", "3.5", "3.5"),
        ("Answer: 2/3", "\\frac{2}{3}", "\\frac{2}{3}"),
        ("Answer: 42<|im_end|>", "42", "42"),
        ("Answer: 42", ["41", "42"], "42"),
        ("so \\boxed{42}", "42", "42"),
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


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("Answer: $42$ and $43$", "42"),
        ("Answer: $43$ or $42$", "42"),
        ("Answer: 42 or 43", "42"),
        ("Answer: 42, 43", "4243"),
        ("no answer here", "[INVALID]"),
        ("Answer: meters", "feet"),
        ("Answer: ", "square"),
        ("Answer: 3.5", "3"),
        ("Answer: 4.2", "42"),
        ("Answer: 42 (because 6 * 7)", "42"),
        ("Answer: 42\nAnswer: 43", "42"),
        ("\\boxed{42}\nAnswer: 43", "42"),
    ],
)
def test_what_is_several_answers_or_none_gets_minus_1(response: str, label: str) -> None:
    assert score(response, label)["score"] == -1.0


def test_normalising_twice_changes_nothing_more() -> None:
    for text in ("a square of 5 cm", "x=\\frac12", "\\text{s}", "$3$", "1,000", "an apple"):
        assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize("label", [None, "", [], {"a": 1}, float("nan")])
def test_a_label_that_cannot_be_compared_with_is_an_error(label: Any) -> None:
    with pytest.raises(DataError, match="sample 3"):
        score("Answer: 1", label)
