"""What enters a run and what hooks leave in samples is plain JSON data, or is named where it cannot be."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import DataError, PluginError, SampleError
from slime_core.plain import plain, read_json
from slime_core.plugins.selection import Selected
from slime_core.sample import RolloutOutput, Sample


class Name(StrEnum):
    A = "a"


class Number(IntEnum):
    TWO = 2


MADE: list[tuple[Any, Any]] = [
    (np.int64(3), 3),
    (np.float32(0.5), 0.5),
    (np.float64(0.5), 0.5),
    (np.bool_(True), True),
    (np.str_("x"), "x"),
    (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
    (torch.tensor(2.5), 2.5),
    (torch.tensor([1, 2]), [1, 2]),
    ((1, (2, "x")), [1, [2, "x"]]),
    (date(2024, 5, 6), "2024-05-06"),
    (datetime(2024, 5, 6, 7, tzinfo=UTC), "2024-05-06T07:00:00+00:00"),
    (time(1, 2), "01:02:00"),
    (timedelta(minutes=1), 60.0),
    (Decimal("1.50"), "1.50"),
    (Decimal(7), 7),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (PurePosixPath("a/b"), "a/b"),
    (Name.A, "a"),
    (Number.TWO, 2),
    ({1: "a", np.int64(2): "b"}, {"1": "a", "2": "b"}),
]


@pytest.mark.parametrize(("value", "expected"), MADE, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("place", [lambda v: v, lambda v: [v], lambda v: {"k": v}, lambda v: {"k": [{"l": v}]}])
def test_a_value_becomes_plain_wherever_it_stands(value: Any, expected: Any, place: Any) -> None:
    made = plain(place(value), "it")
    assert made == place(expected)
    assert json.loads(json.dumps(made)) == place(expected)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"seen": {1, 2}}, "it.seen is 'set', which JSON has no form for"),
        ([[b"x"]], r"it\[0\]\[0\] is 'bytes', which JSON has no form for"),
        ({"f": print}, "it.f is 'builtin_function_or_method'"),
        ({(1, 2): 3}, r"it has the key \(1, 2\); expected text"),
        ({1: "a", "1": "b"}, "it has two keys that are the same text"),
    ],
)
def test_what_is_no_data_is_named_with_its_place(value: Any, problem: str) -> None:
    with pytest.raises(DataError, match=f"^{problem}"):
        plain(value, "it")


def test_a_list_in_itself_is_nested_too_deeply() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(DataError, match="nested too deeply to be read"):
        plain(endless, "it")


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_plain_data_stays_the_very_same_object_and_reads_back(value: Any) -> None:
    assert plain(value, "it") is value
    assert repr(read_json(json.dumps(value))) == repr(value)


@pytest.mark.parametrize("depth", [99, 100, 101, 1000, 100_000])
@pytest.mark.parametrize("wide", [False, True])
def test_depth_is_limited_and_width_is_not(depth: int, wide: bool) -> None:
    text = "[" * depth + "]" * depth
    text = f"[{text[1:-1]}{', []' * 500 if wide and depth > 1 else ''}]" if depth < 1000 else text
    if depth <= 100:
        assert isinstance(read_json(text), list)
    else:
        with pytest.raises(DataError, match="nested too deeply to be read"):
            read_json(text)


def selected(kind: str, target: Any) -> Selected[Any]:
    return Selected(kind, "mine", target, "my-plugin 1.0", "--its-option", "my-plugin")


def sample(**fields: Any) -> Sample:
    return Sample(index=3, tokens=[1, 2], response_length=1, metadata={"slime": {"source": "a.jsonl:7"}}, **fields)


def test_what_a_reward_returns_and_leaves_becomes_plain() -> None:
    def reward(args: Any, sample: Sample) -> Any:
        sample.metadata["seen"] = np.arange(2)
        sample.loss_mask = np.ones(1, dtype=np.int64)  # type: ignore[assignment]  # as hooks do
        return np.float32(0.5)

    async def for_group(args: Any, samples: list[Sample]) -> Any:
        samples[0].metadata["when"] = date(2024, 5, 6)
        return (np.float64(1.0),)

    one = sample()
    result = selected("reward", reward)(None, one)
    if asyncio.iscoroutine(result):
        result = asyncio.run(result)
    assert (type(result), result) == (float, 0.5)
    assert (one.metadata["seen"], one.loss_mask) == ([0, 1], [1])
    assert asyncio.run(selected("reward", for_group)(None, [one])) == [1.0]
    assert one.metadata["when"] == "2024-05-06"


@pytest.mark.parametrize("kind", ["reward", "rollout", "dynamic_filter"])
def test_what_cannot_become_plain_names_sample_place_and_component(kind: str) -> None:
    def hook(args: Any, given: Any, **further: Any) -> Any:
        one = given if isinstance(given, Sample) else sample()
        one.metadata["seen"] = {1, 2}
        return {"reward": 1.0, "rollout": RolloutOutput([[one]])}.get(kind, [one])

    with pytest.raises(SampleError, match=r"^sample 3 \(a\.jsonl:7\): metadata\.seen is 'set', which JSON") as caught:
        selected(kind, hook)(None, sample())
    assert "the " + kind in caught.value.__notes__[0]
    assert "my-plugin" in caught.value.__notes__[0]


def test_a_reward_that_is_no_data_is_named() -> None:
    with pytest.raises(PluginError, match="'set', which JSON has no form for"):
        selected("reward", lambda args, sample: {"score": {1}})(None, sample())


def test_what_slime_notes_leaves_the_rows_own_metadata_alone() -> None:
    one = Sample(metadata={"source": "workshop", "dataset": 5, "tools": [{"name": "hammer"}]})
    own = dict(one.metadata)
    assert (one.source, one.dataset, one.tools) == ("", None, None)
    one.note(source="a.jsonl:1", tools=[{"name": "f"}])
    one.note(dataset="math")
    assert (one.source, one.dataset, one.tools) == ("a.jsonl:1", "math", [{"name": "f"}])
    assert {key: value for key, value in one.metadata.items() if key != "slime"} == own
    assert Sample.from_dict(json.loads(json.dumps(one.to_dict()))) == one
