"""Evaluation sets are read in one place: which rows, under which columns, and what becomes of a malformed one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from slime_core.data import evaluation_sets
from slime_core.errors import DataError

ROWS: list[Any] = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(3)]


@pytest.fixture
def arguments(default_arguments: Any, tmp_path: Path) -> Any:
    """`arguments(name=rows, **changes)`: arguments of a run whose evaluation sets are files with these rows."""

    def make(sets: dict[str, list[Any]], **changes: Any) -> Any:
        spec: list[str] = []
        for name, rows in sets.items():
            path = tmp_path / f"{name}.jsonl"
            path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
            spec += [name, str(path)]
        return default_arguments(eval_prompt_data=spec, input_key="question", **changes)

    return make


def test_every_row_of_every_set_becomes_a_sample_that_names_its_set(arguments: Any, tmp_path: Path) -> None:
    args = arguments({"easy": ROWS[:2], "hard": ROWS[2:]}, label_key="answer")
    counts: Counter[str] = Counter()
    found = [sample for one in evaluation_sets(args) for sample in one.samples(counts)]
    assert [(s.prompt, s.label, s.dataset, s.index) for s in found] == [
        ("q0", "a0", "easy", None),
        ("q1", "a1", "easy", None),
        ("q2", "a2", "hard", None),
    ]
    assert found[1].source == f"{tmp_path}/easy.jsonl:2"
    assert not counts


def test_evaluation_sets_may_have_columns_of_their_own(arguments: Any) -> None:
    (only,) = evaluation_sets(arguments({"easy": ROWS}, eval_input_key="answer", eval_label_key="question"))
    assert [(s.prompt, s.label) for s in only.samples(Counter())] == [("a0", "q0"), ("a1", "q1"), ("a2", "q2")]


def test_a_malformed_row_stops_the_run_or_is_counted(arguments: Any, tmp_path: Path) -> None:
    sets = {"easy": [ROWS[0], "no json", {"query": "q"}, ROWS[1]]}
    counts: Counter[str] = Counter()
    (only,) = evaluation_sets(arguments(sets, malformed_row="skip"))
    assert [s.prompt for s in only.samples(counts)] == ["q0", "q1"]
    assert counts == {"skipped_malformed": 2}
    (only,) = evaluation_sets(arguments(sets))
    with pytest.raises(DataError, match=rf"^{tmp_path}/easy\.jsonl:2: not valid JSON"):
        list(only.samples(counts))


def test_no_set_is_opened_before_it_is_read(arguments: Any) -> None:
    args = arguments({})
    assert evaluation_sets(args) == ()
    args.eval_prompt_data = ["no/such/file.jsonl"]
    (missing,) = evaluation_sets(args)
    with pytest.raises(DataError, match=r"There is no file no/such/file\.jsonl"):
        list(missing.samples(Counter()))
