"""`math`, `boxed_math` and `deepscaler` give credit for what equals the label, and never hang."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from slime_core.errors import DataError
from slime_core.plugins import Plugins
from slime_core.rollout.rewards import reward_caller
from slime_core.rollout.rewards import score as group_score
from slime_core.sample import Sample
from slime_rewards import pool
from slime_rewards.math import boxed_math, deepscaler, math

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
        ("3 + 4 = 7", "7"),
    ],
)
def test_what_equals_the_label_counts(response: str, label: Any) -> None:
    assert score(response, label) == 1.0


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
    assert score(r"\boxed{9^{9^9}}", "3", args=HASTY) == 0.0
    assert time.monotonic() - started < 60
    assert score(r"\boxed{3.0}", "3", args=HASTY) == 1.0


def test_the_same_text_needs_no_process() -> None:
    nobody = SimpleNamespace(math_verify_workers=0, math_verify_timeout=0.0)
    assert score(r"it is \boxed{ \frac{1}{2} }", r"$\frac{1}{2}$", args=nobody) == 1.0
    with pytest.raises(TimeoutError):  # the control: a comparison would need one
        asyncio.run(asyncio.wait_for(math(nobody, Sample(response=r"\boxed{1}", label="2")), 0.2))


def test_a_batch_of_48_is_graded_at_once() -> None:
    async def batch() -> list[float]:
        samples = [Sample(index=i, response=rf"\boxed{{{i}/2}}", label=str(i / 2 + i % 2)) for i in range(48)]
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
    # The control: `math` of these words finds the number in them, as it may in a response without a box.
    assert score(r"\text{not } 42", label, math) == 1.0


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


@pytest.mark.parametrize("label", [None, "", "  "])
def test_a_sample_without_label_is_an_error(label: Any) -> None:
    with pytest.raises(DataError, match="sample 3"):
        score(r"\boxed{1}", label)


def test_the_worker_imports_math_verify_and_nothing_of_slime_but_itself() -> None:
    code = (
        "import sys, slime_rewards.math_worker; "
        "print(*sorted(m for m in sys.modules if m.startswith('slime') or m in ('torch', 'transformers', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["slime_rewards", "slime_rewards.math_worker"]


def test_a_run_that_chooses_it_without_the_package_is_told_what_to_install() -> None:
    code = """
import importlib.util as util
real = util.find_spec
util.find_spec = lambda name, *rest: None if name in ("math_verify", "reasoning_gym") else real(name, *rest)
from slime_core.errors import PluginError
from slime_core.plugins import Plugins
plugins = Plugins()
for name in ("math", "deepscaler", "reasoning_gym", "final_answer"):
    try:
        plugins.select("reward", name)
    except PluginError as error:
        print(name, "pip install 'slime-rewards[" in str(error))
    else:
        print(name, "selected")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["math True", "deepscaler True", "reasoning_gym True", "final_answer selected"]


def test_chosen_by_name_one_endless_answer_spoils_no_batch() -> None:
    args = SimpleNamespace(**vars(HASTY), failure_policy=[])
    caller = reward_caller(args, Plugins().select("reward", "math"))
    answers = ["1/2", "9^{9^9}", "\\frac{2}{4}", "2"]
    group = [Sample(index=i, response=f"\\boxed{{{answer}}}", label="0.5") for i, answer in enumerate(answers)]
    assert asyncio.run(group_score(caller, args, group)) == [1.0, 0.0, 1.0, 0.0]
    assert (caller.failures, caller.dropped) == (0, 0)
