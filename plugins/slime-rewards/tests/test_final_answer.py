"""`final_answer` gives credit for the right number, and for nothing that merely contains it."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import DataError
from slime_core.sample import Sample
from slime_rewards.final_answer import final_answer, final_number

ARGS = SimpleNamespace()


def score(response: str, label: object) -> float:
    return asyncio.run(final_answer(ARGS, Sample(index=0, response=response, label=label)))


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("7", "7"),
        ("It is 7.", 7),
        ("3 + 4 = 7", "7"),
        ("The sum is 3 + 4, so the answer is **7**.", "7"),
        ("7 apples", "7"),
        ("Answer:7", "7"),
        ("x=-3", "-3"),
        ("it is −3.", -3),
        ("$1,234.50", "1234.5"),
        ("She pays -$5.", "-5"),
        ("She pays $-5!", "-5"),
        ("That costs 5€.", "5"),
        ("so $x = 42$.", "42"),
        (r"so \(x = 42\).", "42"),
        (r"\$42", "42"),
        ("50%", "50"),
        (r"50\%", "50"),
        ("It weighs 5kg", "5"),
        ("2 million", "2000000"),
        ("about 1.5 thousand.", 1500),
        ("1e3", "1000"),
        ("1/2", "0.5"),
        (r"\frac{1}{2}", "0.5"),
        (r"-\dfrac{1}{2}", "-0.5"),
        ("2 1/2", "2.5"),
        (r"2\frac{1}{2}", "2.5"),
        ("-2 1/2", "-2.5"),
        (".5", "1/2"),
        ("007", "7"),
        ("12 - that is all", "12"),
        ("Steps:\n- 12\n- 30", "30"),
        (r"1{,}234", "1234"),
        (r"1\,234", "1234"),
        (r"So \boxed{42}. Check: 6*7 and 10 more.", "42"),
        (r"\boxed{x = 42}", "42"),
        (r"\boxed{\text{42}}", "42"),
        (r"\boxed{5\text{ cm}}", "5"),
        (r"\boxed{\frac{3}{4}}", "0.75"),
        (r"First \boxed{1}, no: \boxed{2}", "2"),
        ("6 times 7\n#### 42", "42"),
        ("so the answer is #### $42", "42"),
        (r"#### \boxed{42}", "42"),
        ("#### 42 apples.", "42"),
        ("#### Step 1\nWe add 3 and 4 and get 7", "7"),
        ("7", "3 and 4 is 7\n#### 7"),
        ("7.0", "It is 7. Easy."),
    ],
)
def test_the_right_number_counts(response: str, label: object) -> None:
    assert score(response, label) == 1.0


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("", "7"),
        ("I do not know.", "7"),
        ("72", "7"),
        ("27", "7"),
        ("7.5", "7"),
        ("0.7", "7"),
        ("-7", "7"),
        ("It is x = - 7", "7"),
        ("3,142", "142"),
        ("3,142", "3"),
        ("1,2,3,142", "142"),
        ("12,34", "34"),
        ("7 or 8", "7"),
        ("1 2 3 4 5 6 7 8 9", "7"),
        ("2^10", "10"),
        ("10^{3}", "3"),
        ("2**7", "7"),
        ("10 - 3", "3"),
        ("10-3", "3"),
        ("10 - 3", "7"),
        (r"6 \times 7", "7"),
        ("12:30", "30"),
        ("1.2.7", "7"),
        ("H2O7", "7"),
        ("x7", "7"),
        ("7x", "7"),
        ("f(7)", "7"),
        (r"\sqrt{7}", "7"),
        ("x > 7", "7"),
        ("x != 7", "7"),
        ("x!=7", "7"),
        ("1/7", "7"),
        ("7/0", "7"),
        ("2 1/2", "0.5"),
        (r"2\frac{1}{2}", "0.5"),
        ("2 million", "2"),
        ("2 hundred.", "2"),
        ("#7", "7"),
        ("0x7", "7"),
        ("1e7", "7"),
        ("1e999999999", "7"),
        ("9^{9^9}", "9"),
        (r"\boxed{8} or 7", "7"),
        (r"\boxed{7", "7"),
        (r"7 \boxed{}", "7"),
        (r"7 \boxed{x}", "7"),
        (r"\boxed{7, 8}", "8"),
        (r"\boxed{7 or 8}", "7"),
        (r"\boxed{2 + 7}", "7"),
        (r"\boxed{2x}", "2"),
        (r"\boxed{\sqrt{7}}", "7"),
        (r"\boxed{7} no, \boxed{8}", "7"),
        (r"\boxed{7" + "\n#### 8", "7"),
        ("7\n####", "7"),
        ("#### 7 or 8", "8"),
        ("#### 8\n", "7"),
        ("33333333333333333", "33333333333333332"),
        ("0.3333333", "1/3"),
    ],
)
def test_no_other_number_counts(response: str, label: object) -> None:
    assert score(response, label) == 0.0


@pytest.mark.parametrize(
    ("label", "told"),
    [(None, "none"), ("", "none"), ("blue", "exact_match"), ("x7", "exact_match"), ({"a": "b"}, "keys 'a'")],
)
def test_a_label_without_a_number_is_an_error_that_names_the_sample(label: object, told: str) -> None:
    with pytest.raises(DataError, match=rf"sample 0.*{told}"):
        score("7", label)


def test_any_of_several_labels_will_do() -> None:
    assert (score("7", ["8", 7]), score("7", [7.0]), score("7", ["8"])) == (1.0, 1.0, 0.0)


@given(st.fractions(max_denominator=999), st.text(alphabet="abc ., xyz\n", max_size=30))
def test_a_number_survives_any_words_before_it(number: Fraction, words: str) -> None:
    assert final_number(f"{words} {number}") == number


@given(st.text(alphabet="0123456789 .,-+*/^=$%#{}()\\boxedfrac\n:", max_size=60))
def test_no_text_makes_it_fail(text: str) -> None:
    value = final_number(text)
    assert value is None or isinstance(value, Fraction)


@given(st.integers(0, 10**12), st.integers(0, 10**6))
def test_integers_get_credit_exactly_when_equal(response: int, label: int) -> None:
    assert score(f"So it is {response:,}.", str(label)) == float(response == label)


@pytest.mark.parametrize("text", ["9" * 10**6, "- 1 " * 40_000, r"\boxed{" * 10**5, r"\text{" * 10**5, "1," * 10**5])
def test_long_texts_are_read_quickly(text: str) -> None:
    started = time.process_time()
    final_number(text)
    assert time.process_time() - started < 5
