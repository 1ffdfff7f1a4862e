"""Columns of tokens read like the lists that they were made of, keep every bit, and are changed by nobody."""

from __future__ import annotations

import copy
import json
import math
import operator
import pickle
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.contracts.advantage import AdvantageOutputs
from slime_core.errors import SampleError
from slime_core.sample import Sample, check_rollout
from slime_core.token_arrays import array_of, kept, num_tokens, num_trained, prompt_ids, token_ids, trained, versions
from slime_core.token_columns import (
    COLUMNS,
    TokenColumn,
    column_of_flags,
    column_of_floats,
    column_of_ints,
    column_of_words,
)
from slime_core.training.signals import columns_of

INTS, FLAGS = [5, 0, 151_643, 7, 7], [1, 0, 1, 1, 0]
LISTS: list[tuple[Callable[[Any], TokenColumn[Any]], list[Any]]] = [
    (column_of_ints, INTS),
    (column_of_ints, []),
    (column_of_ints, [-1, 2**40]),
    (column_of_flags, FLAGS),
    (column_of_floats, [-0.5, 0.0, -1.25]),
    (column_of_floats, [-0.1, -1e-300, -3.0]),
    (column_of_words, [3, 3, 3]),
    (column_of_words, [3, "step-4", 3]),
    (column_of_words, ["a"]),
    (column_of_words, []),
]
CASES = pytest.mark.parametrize(("make", "values"), LISTS, ids=[f"{m.__name__}-{v}" for m, v in LISTS])

READ: dict[str, Callable[[Any], Any]] = {
    "len": len,
    "bool": bool,
    "list": list,
    "tuple": tuple,
    "reversed": lambda x: list(reversed(x)),
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
    "behind the end": lambda x: x[99],
    "by a numpy number": lambda x: x[np.int64(0)],
    "by a float": lambda x: x[1.0],
    "slice": lambda x: list(x[1:3]),
    "slice of a slice": lambda x: list(x[1:][:-1]),
    "steps": lambda x: list(x[::-2]),
    "slice is equal": lambda x: x[:2] == list(x)[:2],
    "repr": repr,
    "format": lambda x: f"{x}",
    "sum with a list": lambda x: [*operator.add(x, [1]), *operator.add([2], x)],
    "sum of two": lambda x: x + x,
    "times": lambda x: [x * 2, 2 * x],
    "with a tuple": lambda x: operator.add(x, (1,)),
    "in place": lambda x: operator.iadd([9], x),  # type: ignore[no-untyped-call]  # typeshed leaves it so
    "starred": lambda x: [*x, *x],
    "in": lambda x: [3 in x, "none" in x, 0.5 in x],
    "count": lambda x: [x.count(7), x.count("a"), x.count(3)],
    "index": lambda x: x.index(list(x)[-1]),
    "index of nothing": lambda x: x.index("none"),
    "index from": lambda x: x.index(7, 4),
    "copy": lambda x: x.copy(),
    "equal": lambda x: [x == list(x), list(x) == x, x != list(x), x == [*x, 1], x == tuple(x), x == None],  # noqa: E711
    "order": lambda x: [x < [*x, 1], x <= list(x), x > [], x >= [*x]],
    "hash": hash,
    "sum": lambda x: sum(v for v in x if not isinstance(v, str)),
    "max": max,
    "sorted": lambda x: sorted(x, key=str),
    "set": lambda x: sorted(set(x), key=str),
    "zip": lambda x: list(zip(x, x, strict=True)),
    "array": lambda x: np.array(x, dtype=object).tolist(),
    "json": lambda x: json.dumps(list(x)),
    "deepcopy": lambda x: copy.deepcopy(x) == x,
    "pickle": lambda x: list(pickle.loads(pickle.dumps(x))),
}


def outcome(read: Callable[[Any], Any], values: Any) -> tuple[str, Any]:
    """What a look at the values gives, or how it fails."""
    try:
        return "is", read(values)
    except Exception as error:
        return "fails", type(error)


@CASES
@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_a_column_reads_like_its_list(make: Any, values: list[Any], read: Callable[[Any], Any]) -> None:
    assert outcome(read, make(values)) == outcome(read, values)


@CASES
def test_single_values_are_pythons_own(make: Any, values: list[Any]) -> None:
    column = make(values)
    assert [type(column[n]) for n in range(len(column))] == [*map(type, column)] == [*map(type, values)]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.append(1),
        lambda x: x.extend([1]),
        lambda x: x.insert(0, 1),
        lambda x: x.pop(),
        lambda x: x.remove(1),
        lambda x: x.clear(),
        lambda x: x.sort(),
        lambda x: x.reverse(),
        lambda x: operator.setitem(x, 0, 1),
        lambda x: operator.delitem(x, 0),
    ],
)
def test_who_changes_a_column_is_told_to_make_a_list(change: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"Make a list of them.*list\(sample"):
        change(column_of_flags(FLAGS))


@settings(max_examples=100)
@given(st.lists(st.floats() | st.floats(width=32)))
def test_log_probs_keep_every_bit_and_take_four_bytes_where_that_is_enough(values: list[float]) -> None:
    column = column_of_floats(values)
    bits = [math.copysign(1, v) if v == 0 else repr(v) for v in values]
    assert [math.copysign(1, v) if v == 0 else repr(v) for v in column] == bits
    if values and all(v == float(np.float32(v)) for v in values if abs(v) < 3e38) and max(map(abs, values)) < 3e38:
        assert column.nbytes == 4 * len(values)


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ([0.1] * 5, 1),
        ([0.1, 0.0, 0.1, 0.1], 1),
        ([0.0, -0.0, 0.0], 1),
        ([math.nan, 0.3], 1),
        ([0.1, 0.2, 0.3], 8),
        ([0.5, 0.25, 1.0], 4),
        ([0.5, 0.0], 1),
        ([], 1),
    ],
)
def test_advantages_keep_every_bit_and_take_a_byte_where_they_are_two(values: list[float], size: int) -> None:
    outputs = AdvantageOutputs(torch.tensor(values, dtype=torch.float64))
    (column,) = columns_of(outputs, [Sample(response_length=len(values))])["advantages"]
    assert isinstance(column, TokenColumn)
    assert column.nbytes == size * len(values)
    sent = pickle.loads(pickle.dumps(column))
    for read in (column.tolist(), *(array_of(part).tolist() for part in (column, column[1:], sent))):
        assert struct.pack(f"{len(read)}d", *read) == struct.pack(f"{len(read)}d", *values[len(values) - len(read) :])


def test_an_array_travels_out_of_band() -> None:
    buffers: list[Any] = []
    column = column_of_ints(range(1000))[100:200]
    stored = pickle.dumps(column, protocol=5, buffer_callback=buffers.append)
    assert len(stored) < 300
    assert [buffer.raw().nbytes for buffer in buffers] == [400]
    assert pickle.loads(stored, buffers=buffers) == list(range(100, 200))


def whole() -> Sample:
    """A sample with all that tokens have, as hooks write it."""
    return Sample(
        index=3,
        tokens=[1, 2, 3, 4, 5],
        response_length=3,
        reward=1.0,
        loss_mask=[1, 0, 1],
        rollout_log_probs=[-0.5, -0.1, -2.0],
        weight_versions=[1, 1, 2],
    )


def compacted() -> Sample:
    """`whole` in columns."""
    sample = whole()
    sample.compact()
    assert all(type(kept(sample, name)) is TokenColumn for name in COLUMNS)
    return sample


def test_what_is_read_of_a_sample_in_columns_is_a_list_that_may_be_changed() -> None:
    sample = compacted()
    for name in COLUMNS:
        assert type(getattr(sample, name)) is list
        assert getattr(sample, name) is getattr(sample, name)
    sample = compacted()
    sample.tokens.append(6)
    sample.loss_mask += [1]  # type: ignore[operator]
    assert (sample.tokens, sample.loss_mask) == ([1, 2, 3, 4, 5, 6], [1, 0, 1, 1])


@pytest.mark.parametrize(
    "read", [lambda s: s, copy.copy, copy.deepcopy, Sample.changed], ids=["itself", "copy", "deepcopy", "changed"]
)
def test_copies_of_a_sample_share_columns_and_no_lists(read: Callable[[Sample], Sample]) -> None:
    sample = compacted()
    other = read(sample)
    assert kept(other, "tokens") is kept(sample, "tokens")
    if other is not sample:
        other.tokens.append(6)
        assert sample.tokens == whole().tokens


def test_a_sample_in_columns_is_stored_and_sent_as_one_of_lists_is() -> None:
    assert compacted().to_dict() == whole().to_dict()
    assert json.dumps(compacted().to_dict()) == json.dumps(whole().to_dict())
    sent = pickle.loads(pickle.dumps(compacted()))
    assert type(kept(sent, "tokens")) is TokenColumn
    assert sent == whole()


@pytest.mark.parametrize("make", [whole, compacted])
def test_arrays_of_a_sample_say_what_its_lists_say(make: Callable[[], Sample]) -> None:
    sample = make()
    before = dict(vars(sample))
    assert token_ids(sample).tolist() == [1, 2, 3, 4, 5]
    assert prompt_ids(sample).tolist() == [1, 2]
    assert trained(sample).tolist() == [1, 0, 1]
    assert (num_tokens(sample), num_trained(sample), sample.effective_response_length) == (5, 2, 2)
    assert versions(sample) == {1: 2, 2: 1}
    assert all(vars(sample)[name] is value for name, value in before.items())  # nothing became a list by that
    sample.remove_sample = True
    assert (trained(sample).tolist(), num_trained(sample), sample.effective_response_length) == ([0, 0, 0], 0, 2)
    sample.remove_sample, sample.loss_mask = False, None
    assert (trained(sample).tolist(), num_trained(sample), sample.effective_response_length) == ([1, 1, 1], 3, 3)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("loss_mask", [1, 2, 0], r"loss_mask holds \[2\]; only 0 and 1"),
        ("loss_mask", [1, -1, 300], r"loss_mask holds \[-1, 300\]; only 0 and 1"),
        ("loss_mask", [1, 0.5, 0], r"loss_mask holds \[0.5\]; only 0 and 1"),
        ("rollout_log_probs", [0.0, float("nan"), -1.0], "rollout_log_probs holds nan; log-probabilities are finite"),
        ("rollout_log_probs", [0.0, float("-inf"), -1.0], "rollout_log_probs holds -inf; "),
        ("rollout_log_probs", [-0.1, 0.25, -1.0], "rollout_log_probs holds 0.25; "),
        ("rollout_log_probs", [-0.1, None, -1.0], r"rollout_log_probs holds \[None\]; "),
        ("tokens", [1, 2, 3.5, 4, 5], r"tokens holds \[3.5\]; token ids are whole numbers"),
        ("weight_versions", [1, 2.5, 1], r"weight_versions holds \[2.5\]; weight versions are ints or strings"),
        ("loss_mask", [1], "loss_mask has 1 entries, but response_length is 3"),
    ],
)
@pytest.mark.parametrize("in_columns", [False, True])
def test_what_cannot_be_trained_is_named_in_columns_as_in_lists(
    name: str, value: list[Any], told: str, in_columns: bool
) -> None:
    sample = whole()
    setattr(sample, name, value)
    if in_columns:
        sample.compact()
    with pytest.raises(SampleError, match=told):
        check_rollout([[sample]], need_reward=True)
