"""`slime tasks` writes distinct, reproducible, held-out questions."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slime_core.cli import main
from slime_core.sample import Sample
from slime_rewards.final_answer import final_answer

TWO_DIGITS = ["--set", "min_terms=2", "max_terms=2", "min_digits=1", "max_digits=1"]


def write(output: Path, *words: Any, task: str = "chain_sum", settings: list[str] = TWO_DIGITS) -> list[dict[str, Any]]:
    assert main(["tasks", task, "--output", str(output), *settings, *map(str, words)]) == 0
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def questions(rows: list[dict[str, Any]]) -> set[str]:
    return {row["messages"][-1]["content"] for row in rows}


def test_rows_are_distinct_reproducible_and_gradable(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", "--size", 50, "--seed", 1)
    assert len(rows) == len(questions(rows)) == 50
    assert rows == write(tmp_path / "b.jsonl", "--size", 50, "--seed", 1)
    assert rows != write(tmp_path / "c.jsonl", "--size", 50, "--seed", 2)
    for row in rows:
        expression = row["metadata"]["reasoning_gym"]["metadata"]["expression"]
        assert int(row["label"]) == eval(expression)
        sample = Sample(response=f"It is {row['label']}.", label=row["label"])
        assert asyncio.run(final_answer(SimpleNamespace(), sample)) == 1.0


def test_neighbouring_seeds_are_unrelated(tmp_path: Path) -> None:
    """In the library itself, seed 2 gives all but the first of the questions of seed 1."""
    one, two = (questions(write(tmp_path / f"{n}.jsonl", "--size", 200, "--seed", n, settings=[])) for n in (1, 2))
    assert len(one & two) < 20


def test_excluded_questions_never_occur(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heldout = questions(write(tmp_path / "eval.jsonl", "--size", 64, "--seed", 1))
    capsys.readouterr()
    rows = write(tmp_path / "train.jsonl", "--size", 136, "--seed", 2, "--exclude", tmp_path / "eval.jsonl")
    assert not heldout & questions(rows)
    assert len(heldout | questions(rows)) == 200, "all two-term sums and differences of digits"
    assert "136 rows of chain_sum; 64 questions rejected because of --exclude" in capsys.readouterr().out


@pytest.mark.parametrize("output", ["eval.jsonl", "./eval.jsonl", "link.jsonl", "hard.jsonl"])
def test_a_file_that_is_excluded_is_not_replaced(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = write(tmp_path / "eval.jsonl", "--size", 5)
    (tmp_path / "link.jsonl").symlink_to("eval.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to("eval.jsonl")
    words = ["--size", "5", "--seed", "2", "--exclude", "*val.jsonl@[1:]", *TWO_DIGITS]
    assert main(["tasks", "chain_sum", "--output", output, *words]) == 2
    assert "is one of the files that are read, and would be replaced; name another" in capsys.readouterr().err
    assert [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()] == before


def test_a_question_inside_a_foreign_row_is_excluded_too(tmp_path: Path) -> None:
    heldout = write(tmp_path / "eval.jsonl", "--size", 64, "--template", "Well?  {question} Hm.")
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("".join(json.dumps({"prompt": row["messages"][0]["content"]}) + "\n" for row in heldout))
    rows = write(tmp_path / "train.jsonl", "--size", 136, "--seed", 2, "--exclude", foreign)
    assert len({row["metadata"]["reasoning_gym"]["question"] for row in [*rows, *heldout]}) == 200


def test_too_few_questions_are_an_error_and_leave_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "train.jsonl"
    assert main(["tasks", "chain_sum", "--output", str(output), "--size", "201", *TWO_DIGITS]) == 2
    assert "only 200 different questions, but --size is 201. Ask for at most 200" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    before = write(tmp_path / "a.jsonl", "--size", 5)
    assert main(["tasks", "chain_sum", "--output", str(tmp_path / "a.jsonl"), "--size", "300", *TWO_DIGITS]) == 2
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == before


def test_shuffled_labels_are_the_same_labels_at_other_questions(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", "--size", 150)
    control = write(tmp_path / "b.jsonl", "--size", 150, "--shuffle-labels")
    assert [row["messages"] for row in rows] == [row["messages"] for row in control]
    assert [row["label"] for row in rows] == [row["metadata"]["true_label"] for row in control]
    assert Counter(row["label"] for row in rows) == Counter(row["label"] for row in control)
    by_chance = sum((n / 150) ** 2 for n in Counter(row["label"] for row in rows).values())
    agreement = sum(a["label"] == b["label"] for a, b in zip(rows, control, strict=True)) / 150
    assert agreement < by_chance + 0.1


def test_template_and_system_message_surround_the_question(tmp_path: Path) -> None:
    (row,) = write(
        tmp_path / "a.jsonl", "--size", 1, "--template", "Q: {question} {x}\nA:", "--system", "Sei kurz. 你好"
    )
    question = row["metadata"]["reasoning_gym"]["question"]
    assert row["messages"] == [
        {"role": "system", "content": "Sei kurz. 你好"},
        {"role": "user", "content": f"Q: {question} {{x}}\nA:"},
    ]


def test_the_list_names_tasks_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 100
    assert any(line.startswith("chain_sum ") and "min_terms=2" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chain_sum"], "--output FILE"),
        (["chain_sun", "--output", "OUT.jsonl"], "Did you mean 'chain_sum'?"),
        (["chain_sum", "--output", "OUT.txt"], "ends in .jsonl"),
        (["chain_sum", "--output", "OUT.jsonl", "--size", "0"], "--size is 0"),
        (["chain_sum", "--output", "OUT.jsonl", "--template", "x"], "{question}"),
        (["chain_sum", "--output", "OUT.jsonl", "--set", "min_term=2"], "Did you mean 'min_terms'?"),
        (["chain_sum", "--output", "OUT.jsonl", "--set", "seed=2"], "Give it as --seed."),
        (["chain_sum", "--output", "OUT.jsonl", "--set", "min_terms=0"], "min_terms must be positive"),
    ],
)
def test_mistakes_are_explained(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", *(word.replace("OUT", str(tmp_path / "out")) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
