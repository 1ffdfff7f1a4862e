"""Rows that are tokenised already become samples as they are, and a mask that does not fit is named."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slime_core.data import Columns, open_rows, require_known, sample_from_row, vocabulary_of
from slime_core.errors import DataError

columns = partial(Columns, "input_ids")


@pytest.mark.parametrize(
    ("row", "mask"),
    [
        ({}, None),
        ({"loss_mask": [0, 1, 1]}, [0, 1, 1]),
        ({"loss_mask": [False, True, False]}, [0, 1, 0]),
        ({"labels": [-100, 6, -100]}, [0, 1, 0]),
        ({"labels": None, "loss_mask": [0, 0, 1], "attention_mask": [1, 1, 1]}, [0, 0, 1]),
    ],
)
def test_ids_are_taken_as_they_are_and_labels_mean_the_same_as_a_mask(row: dict[str, Any], mask: list[int]) -> None:
    sample = sample_from_row(columns(), {"input_ids": [5, 6, 7], **row}, "f:1")
    assert (sample.prompt, sample.loss_mask, sample.tokens) == ([5, 6, 7], mask, [])


def test_a_parquet_column_of_ids_gives_the_same_samples_as_json_lines(tmp_path: Path) -> None:
    rows = [{"input_ids": [n, n + 1], "labels": [-100, n + 1]} for n in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int64()))])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
    found = [
        [sample_from_row(columns(), row, "f").to_dict() for row in open_rows([str(tmp_path / name)])]
        for name in ("a.jsonl", "a.parquet")
    ]
    assert found[0] == found[1]
    assert found[0][2]["prompt"] == [2, 3]


def test_a_column_of_labels_that_rewards_compare_with_is_no_mask() -> None:
    row = {"input_ids": [5, 6], "labels": "an answer"}
    sample = sample_from_row(columns(label_key="labels"), row, "f:1")
    assert (sample.label, sample.loss_mask) == ("an answer", None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [1, -2]}, "token 2 is -2, expected a whole number from 0 on."),
        ({"input_ids": [1.0, 2]}, "token 1 is 1.0, expected a whole number from 0 on."),
        ({"input_ids": [True, 2]}, "token 1 is True, expected a whole number from 0 on."),
        ({"input_ids": [1, "x"]}, "token 2 is 'x', expected a whole number from 0 on."),
        ({"loss_mask": [1, 1]}, "'loss_mask' is 2 entries, expected a list of 3, one per token."),
        ({"loss_mask": 1}, "'loss_mask' is 1, expected a list of 3, one per token."),
        ({"loss_mask": [0, 1, 2]}, "'loss_mask' holds 2, expected 0 and 1 only."),
        ({"loss_mask": [0, None, 1]}, "'loss_mask' holds None, expected 0 and 1 only."),
        ({"labels": "x"}, "'labels' is 'x', expected a list of 3, one per token."),
        (
            {"labels": [6, 7, -100]},
            "label 1 is 6, expected the token itself, 5, or -100: labels stand in the places of their tokens, "
            "not shifted.",
        ),
        (
            {"labels": [5, 6, 7], "loss_mask": [1, 1, 1]},
            "the row has both 'loss_mask' and 'labels'; keep the one that says what is trained.",
        ),
        ({"attention_mask": [1, 1, 0]}, "'attention_mask' holds a 0, so the row is padded; save it without padding."),
    ],
)
def test_a_row_of_ids_that_does_not_fit_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        sample_from_row(columns(), {"input_ids": [5, 6, 7], **row}, "f.jsonl:4")
    assert str(caught.value) == f"f.jsonl:4: {message}"


def test_an_id_outside_the_vocabulary_is_named() -> None:
    require_known([0, 9, 3], 10)
    with pytest.raises(DataError, match="token 2 is 10, but the tokenizer of --hf-checkpoint knows ids below 10 only"):
        require_known([0, 10, 3], 10)


def test_a_tokenizer_is_asked_once_for_its_highest_id() -> None:
    asked = []

    class Tokenizer:
        def get_vocab(self) -> dict[str, int]:
            asked.append(self)
            return {"a": 0, "b": 9}

    one, other = Tokenizer(), Tokenizer()
    assert [vocabulary_of(tokenizer) for tokenizer in (one, other, one)] == [10, 10, 10]
    assert asked == [one, other]
