"""`math`, `boxed_math`, `deepscaler` and `math_verify` give credit for what equals the label, and never hang."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import DataError
from slime_core.plugins import Plugins
from slime_core.rollout.rewards import reward_caller
from slime_core.rollout.rewards import score as group_score
from slime_core.sample import Sample
from slime_rewards import math as math_module
from slime_rewards import pool
from slime_rewards.answers import given_answer
from slime_rewards.equality import equal
from slime_rewards.math import boxed_math, deepscaler, math, math_verify

ARGS = SimpleNamespace(math_verify_workers=2, math_verify_timeout=5.0)
HASTY = SimpleNamespace(math_verify_workers=1, math_verify_timeout=1.0)


@pytest.fixture(scope="module", autouse=True)
def _close() -> Iterator[None]:
    yield
    pool.close_pools()


def score(response: str, label: Any, reward: Any = math, args: Any = ARGS) -> float:
    return asyncio.run(reward(args, Sample(index=3, response=response, label=label)))


@pytest.mark.parametrize(
    ("response", "label"),
    [
        (r"so \boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{0.5}", r"\frac12"),
        (r"First \boxed{1}, no: \boxed{2}.", "2"),
        (r"\boxed{(x+1)^2}", "x^2+2x+1"),
        (r"\boxed{\{2, 1\}}", r"\{1,2\}"),
        (r"\boxed{x = 3}", "3"),
        (r"\boxed{1,234}", 1234),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}"),
        (r"\boxed{\text{Tuesday}}", "Tuesday"),
        (r"\boxed{−3}", "-3"),
        (r"答案是 \boxed{½}", "½"),
        (r"\boxed{\text{三角形}}", r"\text{三角形}"),
        (r"\boxed{7}", r"Since 3 + 4 = 7, it is \boxed{7.0}."),
        ("The answer is 42.", "42"),
        ("The final answer is $\\frac{3}{4}$. Easy.", "0.75"),
        (r"\boxed{7}", ["6", "7"]),
        (r"\boxed{7}", 7.0),
        (r"\boxed{12}", "Each has 4, so 3 have 4 * 3 = 12.\n#### 12"),
        (r"\boxed{\text{Monday}}", ["Sunday", "Monday"]),
    ],
)
def test_what_equals_the_label_counts(response: str, label: Any) -> None:
    assert score(response, label) == 1.0


@pytest.mark.parametrize(
    ("response", "label", "graded"),
    [
        ("3 + 4 = 7", "7", (0.0, 1.0)),
        (r"\boxed{3+4}", "7", (0.0, 1.0)),
        (r"\boxed{7}", "7.0", (1.0, 1.0)),
        ("8", "7", (0.0, 0.0)),
    ],
)
def test_math_wants_a_marked_answer_that_is_worked_out_and_math_verify_does_not(
    response: str, label: str, graded: tuple[float, float]
) -> None:
    assert (score(response, label), score(response, label, math_verify)) == graded


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{1}", "1"),
        (r"\boxed {1}", "1"),
        (r"\fbox{1}", "1"),
        (r"\fbox{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\text{it is }\boxed{3}}", "3"),
        (r"First \boxed{1}, then we get \boxed{2}.", "2"),
        (r"The roots are \boxed{1} and \boxed{2}.", "1, 2"),
        (r"$x=\boxed{1}$, $y=\boxed{2}$", "1, 2"),
        (r"$\boxed{1}$ or $\boxed{2}$", "1, 2"),
        (r"\boxed{1}\quad\text{and}\quad\boxed{2}", "1, 2"),
        ("\\boxed{1}\n\n\\boxed{1}", "1"),
        (r"\boxed{1} and \boxed{", None),
        (r"\boxed{1} and it says \boxed{2", None),
        ("They paid $12.\n#### 12", "12"),
        ("#### 12\nNo more.", None),
        ("The answer is 12.", "12"),
        ("The answer is 12 boxes, sold in 3 days.", "12 boxes"),
        ("The final answer is: $\\frac{1}{2}$.", "\\frac{1}{2}"),
        ("**Answer:** 12", "12"),
        ("Answer: $12$ or $13$", "$12$ or $13$"),
        ("The answer is 12 or 13.", "12 or 13"),
        ("The answer is 12, maybe 13.", None),
        ("The answer is 12. Or it could be 13.", None),
        ("The answer is 12. No, the answer is 13.", "13"),
        ("### Final Answer\n12", "12"),
        ("The answer to the question is 3.5.", "3.5"),
        ("So there are **12**.", "12"),
        ("**Answer:** The number of cars is **12**.", "12"),
        ("Answer: the number of cars is 12.", "12"),
        ("There are **12** or **13**.", None),
        ("答案是 12。", "12"),
        ("I get 12.", None),
        ("", None),
    ],
)
def test_the_answer_of_a_response_is_what_it_marks(response: str, answer: str | None) -> None:
    assert given_answer(response) == answer


def test_naming_both_answers_gains_nothing_whatever_the_words() -> None:
    forms = (
        r"\boxed{A} and \boxed{B}",
        r"\boxed{A, B}",
        r"\boxed{A \text{ or } B}",
        "The answer is A or B.",
        "Answer: A, B",
    )
    forms += (
        "#### A or B",
        "The answer is A. Perhaps B.",
        "**A** or **B**",
        "The answer is either $A$ or $B$.",
        r"\boxed{A}\boxed{B}",
    )
    for form in forms:
        response = form.replace("A", "17").replace("B", "23")
        assert (score(response, "17"), score(response, "23")) == (0.0, 0.0), form


@pytest.mark.parametrize(
    ("response", "label"),
    [
        (r"\boxed{3}", "2"),
        (r"2, or \boxed{3}", "2"),
        (r"\boxed{2} or rather \boxed{3}", "2"),
        (r"\boxed{2} or rather \boxed{", "2"),
        (r"\boxed{}", "2"),
        (r"\boxed{\text{三角}}", r"\text{三角形}"),
        (r"\boxed{[1,2]}", "(1,2)"),
        (r"\boxed{x^2+2x}", "x^2+2x+1"),
        (r"\boxed{" + "(" * 50 + "}", "2"),
        ("\ud800", "2"),
        ("72 and 27", "7"),
        ("no idea", "7"),
        ("", "7"),
    ],
)
def test_what_does_not_equal_it_does_not(response: str, label: Any) -> None:
    assert score(response, label) == 0.0


def test_an_answer_that_would_take_for_ever_counts_as_wrong_in_time() -> None:
    started = time.monotonic()
    assert score(r"\boxed{\prod_{k=1}^{10^8} k}", r"\sqrt{3}", args=HASTY) == 0.0
    assert time.monotonic() - started < 60
    assert score(r"\boxed{3^{0.5}}", r"\sqrt{3}", args=HASTY) == 1.0


def test_the_same_text_needs_no_process() -> None:
    nobody = SimpleNamespace(math_verify_workers=0, math_verify_timeout=0.0)
    assert score(r"it is \boxed{ \frac{1}{2} }", r"$\frac{1}{2}$", args=nobody) == 1.0
    assert score(r"\boxed{1}", "2", args=nobody) == 0.0, "nor do numbers that are written out"
    with pytest.raises(TimeoutError):  # the control: algebra would need one
        asyncio.run(asyncio.wait_for(math(nobody, Sample(response=r"\boxed{x}", label="x+y")), 0.2))


def test_a_batch_of_48_is_graded_at_once() -> None:
    async def batch() -> list[float]:
        samples = [
            Sample(index=i, response=rf"\boxed{{\sqrt{{{i}}}}}", label=rf"{i + i % 2}^{{1/2}}") for i in range(48)
        ]
        return await asyncio.gather(*(math(ARGS, sample) for sample in samples))

    asyncio.run(batch())  # starts the workers
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        assert asyncio.run(batch()) == [1.0, 0.0] * 24
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 3, seconds  # 0.15 s on two idle cores


@pytest.mark.parametrize(
    ("response", "label", "expected"),
    [
        (r"The answer is \boxed{42}.", "42", 1.0),
        (r"The answer is \boxed{42.0}.", "42", 1.0),
        (r"First \boxed{1}, no: \boxed{2}.", "2", 1.0),
        (r"\boxed{\frac{1}{2}} it is, not 3", "0.5", 1.0),
        (r"\boxed{42}", r"It is \boxed{42.0}.", 1.0),
        (r"\boxed{\text{Tuesday}}", "Tuesday", 1.0),
        ("The answer is 42.", "42", 0.0),
        ("42", "42", 0.0),
        (r"42, or \boxed{3}", "42", 0.0),
        (r"\boxed{42} or rather \boxed{", "42", 0.0),
        (r"\boxed{}", "42", 0.0),
        ("", "42", 0.0),
    ],
)
def test_only_a_box_counts_for_boxed_math(response: str, label: str, expected: float) -> None:
    assert score(response, label, boxed_math) == expected


def test_boxed_math_is_a_component_of_its_own_and_reads_all_of_the_box() -> None:
    selected = Plugins().select("reward", "boxed_math")
    assert (selected.target, selected.prefix) == (boxed_math, "")
    words, label = r"It is \boxed{\text{not } 42}.", "42"
    assert score(words, label, boxed_math) == 0.0
    # The control: `math` of the words in the box finds no box in them.
    assert score(r"The answer is 42", label, math) == 1.0
    assert score(r"The answer is 42", label, boxed_math) == 0.0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"<think>\boxed{1}</think> So \boxed{42.0}", 1.0),
        (r"<think>\boxed{42}</think> So \boxed{1}", 0.0),
        (r"<think>\boxed{42}</think> So 42", 0.0),
        (r"\boxed{42}", 0.0),
        (r"hm ###Response \boxed{42.0}", 1.0),
        (r"a</think>\boxed{1}</think>\boxed{42.0}", 1.0),
        (r"<think> never ends \boxed{42}", 0.0),
    ],
)
def test_deepscaler_grades_the_box_after_the_reasoning(response: str, expected: float) -> None:
    assert score(response, "42", deepscaler) == expected


@pytest.mark.parametrize("reward", [math, boxed_math, deepscaler, math_verify])
@pytest.mark.parametrize("label", [None, "", "  ", [], ["7", ""], {"answer": "7"}, float("nan"), [["7"]]])
def test_a_label_that_cannot_be_compared_with_is_an_error(reward: Any, label: Any) -> None:
    with pytest.raises(DataError, match="sample 3"):
        score("", label, reward)


def test_that_no_response_has_the_mark_of_deepscaler_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    math_module._told.clear()
    with caplog.at_level(logging.WARNING):
        assert [score(r"\boxed{1}", "1", deepscaler) for _ in range(3)] == [0.0] * 3
    assert [record.message.count("</think>") for record in caplog.records] == [1]


@given(
    st.text("0123456789 .,;:/\\+-*^_={}()[]$%|<>~'orandpmxyz√½−π和", max_size=60),
    st.sampled_from(["7", "1,2", "x=2", r"\{1\}", "(1,2)"]),
)
def test_no_answer_makes_the_comparison_fail(answer: str, label: str) -> None:
    equal(label, answer, lambda expected, given: False)


def test_long_and_nested_answers_are_read_in_time() -> None:
    started = time.monotonic()
    for piece in (
        "{",
        "(",
        "[",
        "\\{",
        "\\text{",
        "1,",
        "1 or ",
        "\\frac",
        "^",
        "-",
        " ",
        "9",
        "x=",
        "\\pm ",
        "\\sqrt{",
        "$",
        "1 ",
    ):
        for label in ("7", "1, 2", r"\frac{1}{2}"):
            assert score(r"\boxed{" + piece * (490 // len(piece)) + "}", label, args=HASTY) == 0.0
    assert time.monotonic() - started < 60


def test_the_worker_imports_math_verify_and_nothing_of_slime_but_what_compares() -> None:
    code = (
        "import sys, slime_rewards.math_worker; "
        "print(*sorted(m for m in sys.modules if m.startswith('slime') or m in ('torch', 'transformers', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    parts = ("algebra", "equality", "math_worker", "notation", "numerals", "structure", "units", "values")
    assert done.stdout.split() == ["slime_rewards", *(f"slime_rewards.{part}" for part in parts)]


def test_chosen_by_name_one_endless_answer_spoils_no_batch() -> None:
    args = SimpleNamespace(**vars(HASTY), failure_policy=[])
    caller = reward_caller(args, Plugins().select("reward", "math"))
    answers = ["1/2", "\\prod_{k=1}^{10^8} k", "\\frac{2}{4}", "2"]
    group = [Sample(index=i, response=f"\\boxed{{{answer}}}", label="0.5") for i, answer in enumerate(answers)]
    assert asyncio.run(group_score(caller, args, group)) == [1.0, 0.0, 1.0, 0.0]
    assert (caller.failures, caller.dropped) == (0, 0)
