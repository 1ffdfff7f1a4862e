"""`reasoning_gym` grades with the tasks' own scorers, what the response gives as its answer and nothing more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slime_core.errors import DataError
from slime_core.sample import Sample
from slime_rewards import gym_worker, pool
from slime_rewards.gym import extract_answer, reasoning_gym
from slime_rewards.tasks import entries, row
from slime_rewards.tasks_command import _known

ARGS = SimpleNamespace(reasoning_gym_workers=1, reasoning_gym_timeout=20.0)


@pytest.fixture(scope="module", autouse=True)
def _close() -> Iterator[None]:
    yield
    pool.close_pools()


def score(response: str, label: Any, task: str, metadata: dict[str, Any] | None = None) -> float:
    stored = {"task": task, "settings": {}, "question": "", "metadata": metadata or {}}
    sample = Sample(index=3, response=response, label=label, metadata={"reasoning_gym": stored})
    return asyncio.run(reasoning_gym(ARGS, sample))


@pytest.mark.parametrize(
    ("response", "label", "answer"),
    [
        ("<answer>7</answer> or <answer> 8 </answer>", "7", "8"),
        ("<answer>7</answer> or \\boxed{8}", "7", "7"),
        ("\\boxed{8} not 7", "7", "8"),
        ("\\boxed{7", "7", None),
        ("<think>7</think> 8", "7", "8"),
        ("3 + 4 = 7.", "7", "7"),
        ("It costs $1,234.50!", "7", "1234.50"),
        ("minus −7", "7", "-7"),
        ("it is 2/4", "1/2", "2/4"),
        ("10 - 3", "7", None),
        ("no idea", "7", None),
        ("", "7", None),
        ("I think.\nThe answer is: True.", "True", "True"),
        ("**Friday**", "Friday", "Friday"),
        ("It is so.", "It is so.", "It is so."),
        ("Here it is:\n1 2\n3 4", "1 2\n3 4", "1 2\n3 4"),
        ("这是\n答案", "答案", "答案"),
        ("first\nlast", None, "last"),
    ],
)
def test_the_answer_is_cut_out(response: str, label: str | None, answer: str | None) -> None:
    assert extract_answer(response, label) == answer


def test_right_counts_and_wrong_does_not() -> None:
    assert score("3 + 4 = 7", "7", "chain_sum") == 1.0
    assert score("3 + 4 = 8", "7", "chain_sum") < 0.1
    assert score("", "7", "chain_sum") == 0.0


def test_listing_all_answers_does_not_pay() -> None:
    assert score("True", "True", "course_schedule") == 1.0
    assert score("True False", "True", "course_schedule") == 0.0


def test_an_answer_is_never_executed(tmp_path: Path) -> None:
    bait = tmp_path / "bait"
    entry = {"question": "", "answer": "1 2", "metadata": {"solution": [["1", "2"]], "expression": ""}}
    for task in ("binary_matrix", "spiral_matrix", "string_insertion"):
        attack = f"[open({str(bait)!r}, 'w').close()]"
        response = f"<answer>{attack}</answer>"
        score(response, entry["answer"], task, entry["metadata"])
        assert not bait.exists()


@pytest.mark.parametrize("where", ["answer", "label", "metadata"])
@pytest.mark.parametrize(
    "task", ["number_sorting", "bitwise_arithmetic", "countdown", "puzzle24", "polynomial_multiplication", "n_queens"]
)
def test_code_in_an_answer_a_label_or_the_metadata_has_no_effect(tmp_path: Path, task: str, where: str) -> None:
    bait = tmp_path / "bait"
    entry = next(entries(task, {}, 5))
    for code in (f"open({str(bait)!r}, 'w')", f"__import__('os').mkdir({str(bait)!r})"):
        given = {"question": entry["question"], "answer": entry["answer"], "metadata": dict(entry["metadata"])}
        answer = "[1]"
        if where == "answer":
            answer = f"[{code}]" if task == "n_queens" else code
        elif where == "label":
            given["answer"] = f"{code} and [1]"
        else:
            given["metadata"] = {key: code if isinstance(v, str) else v for key, v in given["metadata"].items()}
        gym_worker.score(task, {}, given, answer)
        assert not bait.exists()


def test_metadata_of_another_origin_is_an_error() -> None:
    with pytest.raises(DataError, match=r"sample 3 .* has \['origin'\]"):
        asyncio.run(
            reasoning_gym(
                ARGS,
                Sample(index=3, response="7", label="7", metadata={"origin": "web", "slime": {"source": "x.jsonl:1"}}),
            )
        )


SLOW = {"knight_swap"}


@pytest.mark.parametrize("task", sorted(set(_known()) - SLOW))
def test_the_right_answer_of_every_task_gets_1_after_a_trip_through_a_file(task: str) -> None:
    written = row(task, {}, next(entries(task, {}, 5)), "{question}", None)
    read = json.loads(json.dumps(written, ensure_ascii=False))
    stored, label = read["metadata"]["reasoning_gym"], read["label"]
    if label is None:
        pytest.skip("the task has no single right answer")
    answer = extract_answer(f"<answer>{label}</answer>", label)
    entry = {"question": stored["question"], "answer": label, "metadata": stored["metadata"]}
    assert gym_worker.score(task, {}, entry, answer or "") == pytest.approx(1.0)
    assert gym_worker.score(task, {}, entry, "surely wrong") < 0.5
