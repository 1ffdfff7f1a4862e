"""`gpqa` finds the letter that a response ends up with."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from slime_core.errors import DataError
from slime_core.sample import Sample
from slime_rewards.choice import chosen_letter
from slime_rewards.gpqa import LETTERS, gpqa


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
    assert chosen_letter(response, LETTERS) == letter


def score(response: str, label: Any = None, **metadata: Any) -> float:
    return asyncio.run(gpqa(SimpleNamespace(), Sample(index=3, response=response, label=label, metadata=metadata)))


def test_the_right_letter_counts_wherever_it_is_stored() -> None:
    assert score("Answer: C", "C") == 1.0
    assert score("Answer: C", " (c) ") == 1.0
    assert score("Answer: C", "some text", correct_letter="C") == 1.0
    assert score("Answer: C", correct_letter="D") == 0.0
    assert score("Answer: C", correct_letter="A", valid_letters=["A", "B"]) == 0.0
    assert score("Answer: J", correct_letter="J", valid_letters=list("ABCDEFGHIJ")) == 1.0


def test_the_label_may_be_the_number_or_the_text_of_a_choice() -> None:
    choices = ["3 eV", "4 eV", "5 eV"]
    for label in (1, 1.0, "4 eV", "4 EV ", "b"):
        assert (score("Answer: B", label, choices=choices), score("Answer: C", label, choices=choices)) == (1.0, 0.0)
        assert score("It is 4 eV", label, choices=choices) == 0.0, "words around the text are no answer"
        assert score("The answer is 4 eV.", label, choices=choices) == 1.0
        assert score(r"\boxed{4 eV}", label, choices=choices) == 1.0
        assert score("The answer is 3 eV or 4 eV.", label, choices=choices) == 0.0
    assert score("Answer: D", 1, choices=choices) == 0.0, "there are three"
    assert score("Answer: B", "up", choices={"A": "down", "B": "up"}) == 1.0
    assert score("The answer is a strange quark.", "a strange quark") == 1.0, "a text without choices"
    assert score("The answer is a charm quark.", "a strange quark") == 0.0


@pytest.mark.parametrize("label", [None, "", "Z", "7", "AB", 10, -1, 1.5, True, ["A"], {"a": 1}, float("nan")])
def test_a_label_that_is_no_letter_is_an_error(label: Any) -> None:
    with pytest.raises(DataError, match="sample 3"):
        score("Answer: A", label)
