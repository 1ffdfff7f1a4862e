"""`gpqa` finds the letter that a response ends up with."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from slime_core.errors import DataError
from slime_core.sample import Sample
from slime_rewards.gpqa import chosen_letter, gpqa


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("B) 3.2 eV", "B"),
        ("The answer is B.", "B"),
        ("Answer: (b)", "B"),
        ("ANSWER IS: B", "B"),
        ("The correct option is **B**", "B"),
        ("The correct answer is option B", "B"),
        ("My first answer is A, but the final answer: B.", "B"),
        ("A is wrong and C is wrong.\nHence B", "B"),
        ("<think>The answer is A.</think> B", "B"),
        (r"The answer is \boxed{B}", "B"),
        (r"The answer is $\boxed{\text{(B)}}$ not A", "B"),
        ("答案是 B。", "B"),
        ("Choice: A quark is too light. B", "B"),
        ("I do not know", None),
        ("", None),
        ("A quark is a particle", None),
        ("Beta decay", None),
        ("The answer is Z", None),
        ("The answer is a difficult one", None),
        ("vitamin B12", None),
    ],
)
def test_the_letter_is_found(response: str, letter: str | None) -> None:
    assert chosen_letter(response) == letter


def score(response: str, label: Any = None, **metadata: Any) -> float:
    return asyncio.run(gpqa(SimpleNamespace(), Sample(index=3, response=response, label=label, metadata=metadata)))


def test_the_right_letter_counts_wherever_it_is_stored() -> None:
    assert score("Answer: C", "C") == 1.0
    assert score("Answer: C", " (c) ") == 1.0
    assert score("Answer: C", "some text", correct_letter="C") == 1.0
    assert score("Answer: C", correct_letter="D") == 0.0
    assert score("Answer: C", correct_letter="A", valid_letters=["A", "B"]) == 0.0
    assert score("Answer: J", correct_letter="J", valid_letters=list("ABCDEFGHIJ")) == 1.0


@pytest.mark.parametrize("label", [None, "", "Z", "7", "AB"])
def test_a_label_that_is_no_letter_is_an_error(label: Any) -> None:
    with pytest.raises(DataError, match="sample 3"):
        score("Answer: A", label)
