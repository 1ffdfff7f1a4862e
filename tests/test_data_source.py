"""The global data source: order, epochs, buffer, resume, and rows that do not fit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.contracts.data import CountsMalformedRows, HasMetrics, malformed_rows, next_groups
from slime_core.data import GlobalDataSource, pop_first
from slime_core.errors import ArgumentError, CheckpointError, DataError, PluginError
from slime_core.sample import Sample, Status


@pytest.fixture(scope="session")
def arguments(default_arguments: Any) -> Any:
    """`arguments(path, **changes)`: over rows of messages."""
    return partial(default_arguments, input_key="messages")


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def chat(text: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": str(text)}]}


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Seven rows, "0" … "6"."""
    return write(tmp_path / "seven.jsonl", [chat(i) for i in range(7)])


def texts(groups: list[list[Sample]]) -> list[str]:
    return [group[0].prompt[0]["content"] for group in groups]


def test_a_batch_goes_on_into_the_next_epoch(arguments: Any, numbered: Path) -> None:
    source = GlobalDataSource(arguments(numbered))
    assert texts(source.get_samples(5)) == list("01234")
    assert texts(source.get_samples(5)) == list("56012")
    assert texts(source.get_samples(20)) == list("34560123456012345601")


def test_it_has_the_further_abilities_that_runs_ask_for(arguments: Any, numbered: Path) -> None:
    source = GlobalDataSource(arguments(numbered))
    assert isinstance(source, HasMetrics)
    assert isinstance(source, CountsMalformedRows)
    assert malformed_rows(source) == 0


def test_groups_and_samples_are_numbered_over_the_whole_run(arguments: Any, numbered: Path) -> None:
    source = GlobalDataSource(arguments(numbered, n_samples_per_prompt=3))
    groups = source.get_samples(4) + source.get_samples(6)
    assert [s.group_index for g in groups for s in g] == [i // 3 for i in range(30)]
    assert [s.index for g in groups for s in g] == list(range(30))


def test_the_samples_of_a_group_share_nothing_that_can_change(arguments: Any, numbered: Path) -> None:
    (first, second), *_ = GlobalDataSource(arguments(numbered, n_samples_per_prompt=2)).get_samples(1)
    first.prompt[0]["content"] = "changed"
    first.metadata["x"] = 1
    assert (second.prompt, second.metadata) == (chat(0)["messages"], {"slime": {"source": f"{numbered}:1"}})


def test_every_epoch_is_another_shuffle_that_the_seed_fixes(arguments: Any, numbered: Path) -> None:
    epochs = GlobalDataSource(arguments(numbered, rollout_shuffle=True)).get_samples(28)
    again = GlobalDataSource(arguments(numbered, rollout_shuffle=True)).get_samples(28)
    other = GlobalDataSource(arguments(numbered, rollout_shuffle=True, rollout_seed=7)).get_samples(28)
    assert texts(epochs) == texts(again) != texts(other)
    per_epoch = [texts(epochs)[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list("0123456") for epoch in per_epoch)
    assert len(set(map(tuple, per_epoch))) == 4


def test_the_shuffle_is_the_one_of_a_list_of_row_numbers(arguments: Any, numbered: Path) -> None:
    expected = list(range(7))
    random.Random(42).shuffle(expected)
    got = GlobalDataSource(arguments(numbered, rollout_shuffle=True)).get_samples(7)
    assert texts(got) == list(map(str, expected))


def test_a_row_brings_label_tools_metadata_and_its_origin(arguments: Any, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = [
        {"q": "text", "answer": 42, "tools": tools, "metadata": {"level": 3}},
        {"q": "text", "answer": None, "tools": json.dumps(tools), "metadata": '{"level": 4}'},
        {"q": "text", "answer": "x", "tools": "", "metadata": None},
        {"q": "text", "answer": "x", "tools": tools, "metadata": {"tools": "hammer"}},
    ]
    path = write(tmp_path / "d.jsonl", rows)
    samples = [g[0] for g in GlobalDataSource(arguments(path, input_key="q", label_key="answer")).get_samples(4)]
    assert [s.label for s in samples] == [42, None, "x", "x"]
    assert [s.metadata for s in samples] == [
        {"level": 3, "tools": tools, "slime": {"source": f"{path}:1", "tools": tools}},
        {"level": 4, "tools": tools, "slime": {"source": f"{path}:2", "tools": tools}},
        {"slime": {"source": f"{path}:3"}},
        {"tools": "hammer", "slime": {"source": f"{path}:4", "tools": tools}},
    ]
    assert {s.prompt for s in samples} == {"text"}
    assert all(s.status is Status.PENDING for s in samples)


def test_the_buffer_is_emptied_first(arguments: Any, numbered: Path) -> None:
    source = GlobalDataSource(arguments(numbered))
    groups = source.get_samples(4)
    source.add_samples(groups[1:])
    assert texts(source.get_samples(2)) == ["1", "2"]
    assert texts(source.get_samples(3)) == ["3", "4", "5"]


def test_pop_first_takes_the_oldest_and_leaves_the_rest() -> None:
    buffer = [[Sample(index=i)] for i in range(4)]
    assert [g[0].index for g in pop_first(None, None, buffer, 3)] == [0, 1, 2]
    assert [g[0].index for g in pop_first(None, 7, buffer, 3)] == [3]
    assert buffer == []


def test_a_buffer_function_of_ones_own_decides_what_leaves(arguments: Any, numbered: Path) -> None:
    calls = []

    def pop_last(args: Any, rollout_id: int | None, buffer: list, num_samples: int) -> list:
        calls.append((args.rollout_seed, rollout_id, num_samples))
        return [buffer.pop()]

    source = GlobalDataSource(arguments(numbered), buffer_pop=pop_last)
    source.add_samples(source.get_samples(3))
    assert texts(source.get_samples(2)) == ["2", "3"]
    assert calls == [(42, None, 2)]


def test_samples_in_place_of_groups_are_refused(arguments: Any, numbered: Path) -> None:
    source = GlobalDataSource(arguments(numbered))
    with pytest.raises(PluginError, match="add_samples was given Sample where a group belongs"):
        source.add_samples([Sample()])  # type: ignore[list-item]


Step = Callable[[GlobalDataSource], list[dict[str, Any]]]


def take(count: int, give_back: int) -> Step:
    """Read groups, pretend to have half-finished the last ones, and put those back."""

    def step(source: GlobalDataSource) -> list[dict[str, Any]]:
        groups = source.get_samples(count)
        for group in groups[len(groups) - give_back :]:
            for sample in group:
                sample.tokens.append(len(sample.tokens))
                sample.status = Status.ABORTED
                sample.rollout_log_probs = [-0.5]
        seen = [sample.to_dict() for group in groups for sample in group]
        source.add_samples(groups[len(groups) - give_back :])
        return seen

    return step


STEPS = st.lists(st.builds(lambda count, back: take(count, min(back, count)), st.integers(0, 9), st.integers(0, 4)))


@settings(max_examples=60)
@given(before=STEPS, after=STEPS, shuffle=st.booleans(), samples=st.integers(1, 2), read_before=st.sampled_from([0, 4]))
def test_a_resumed_source_continues_like_the_unbroken_one(
    arguments: Any,
    tmp_path_factory: pytest.TempPathFactory,
    before: list[Step],
    after: list[Step],
    shuffle: bool,
    samples: int,
    read_before: int,
) -> None:
    rows = [chat(0), "broken", chat(2), {"other": 1}, chat(4)]
    path = write(tmp_path_factory.mktemp("resume") / "d.jsonl", rows)
    args = arguments(path, rollout_shuffle=shuffle, n_samples_per_prompt=samples, malformed_row="skip")
    unbroken = GlobalDataSource(args)
    for step in before:
        step(unbroken)
    state = json.loads(json.dumps(unbroken.state_dict()))
    resumed = GlobalDataSource(args)
    resumed.add_samples(resumed.get_samples(read_before))
    resumed.load_state_dict(state)
    for step in after:
        assert step(resumed) == step(unbroken)
    assert resumed.state_dict() == unbroken.state_dict()


def test_a_checkpoint_of_other_data_is_refused(arguments: Any, numbered: Path, tmp_path: Path) -> None:
    state = GlobalDataSource(arguments(numbered)).state_dict()
    other = GlobalDataSource(arguments(tmp_path / "seven.jsonl", prompt_data=[f"{numbered}@[:5]"]))
    with pytest.raises(CheckpointError, match=r"The checkpoint's data had 7 rows, --prompt-data has 5\."):
        other.load_state_dict(state)


def test_without_data_the_option_is_named(arguments: Any) -> None:
    with pytest.raises(ArgumentError, match="name a file with --prompt-data"):
        GlobalDataSource(arguments())


MALFORMED = [
    # row, options, message after "file:1: "
    (
        {"mesages": [], "id": 1},
        {},
        "the row has no key 'messages'; it has 'mesages', 'id'. Did you mean 'mesages'? Choose one with --input-key.",
    ),
    (chat(1), {"label_key": "label"}, "the row has no key 'label'; it has 'messages'. Choose one with --label-key."),
    ({}, {}, "the row has no key 'messages'; it has no key at all. Choose one with --input-key."),
    ({"messages": []}, {}, "the messages are [], expected a list of at least one message."),
    ({"messages": " "}, {}, "'messages' is \" \", expected text or a list of messages."),
    ({"messages": None}, {}, "'messages' is null, expected text or a list of messages."),
    (
        {"messages": ["hi"]},
        {},
        'message 1 is "hi", expected an object {"role": ..., "content": ...}.',
    ),
    (
        {"messages": [*chat(1)["messages"], {"from": "gpt", "value": "x"}]},
        {},
        "message 2 has the role null, expected a text such as 'user'; it has from, value.",
    ),
    ({"messages": [{"role": "assistant"}]}, {}, "message 1 (assistant) has neither content nor tool_calls."),
    ({"messages": [{"role": "user", "content": 7}]}, {}, "message 1 (user) has the content 7, expected text."),
    (
        {**chat(1), "tools": {"name": "f"}},
        {},
        'the tools are {"name": "f"}; expected a list of tool definitions, or it as JSON text.',
    ),
    (
        {**chat(1), "tools": "[{"},
        {},
        'the tools: "[{" is no valid JSON '
        "(not valid JSON at column 3: Expecting property name enclosed in double quotes).",
    ),
    ({**chat(1), "metadata": [1]}, {}, "'metadata' is [1], expected an object or JSON text of one."),
]


@pytest.mark.parametrize(("row", "options", "message"), MALFORMED)
def test_a_malformed_row_is_named(arguments: Any, tmp_path: Path, row: dict, options: dict, message: str) -> None:
    path = write(tmp_path / "d.jsonl", [row])
    with pytest.raises(DataError) as caught:
        GlobalDataSource(arguments(path, **options)).get_samples(1)
    assert str(caught.value) == f"{path}:1: {message} (--malformed-row skip leaves such rows out.)"


def test_skipped_rows_are_replaced_and_counted(arguments: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [chat(0), "broken", {"other": 1}, chat(3), [1]])
    source = GlobalDataSource(arguments(path, malformed_row="skip"))
    assert texts(source.get_samples(5)) == list("03030")
    assert source.counts == {"malformed_rows": 6}
    assert [s.index for g in source.get_samples(2) for s in g] == [5, 6]


def test_data_without_one_good_row_ends_in_an_error(arguments: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ["broken", {"other": 1}])
    with pytest.raises(
        DataError, match=r"None of the 2 rows of --prompt-data can be used\. The last one: .*d\.jsonl:2"
    ):
        GlobalDataSource(arguments(path, malformed_row="skip")).get_samples(1)


def test_missing_and_null_content_are_the_same_conversation(arguments: Any, tmp_path: Path) -> None:
    call = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    rows = [
        {"messages": [{"role": "assistant", "tool_calls": call}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": call, "name": None}]},
    ]
    source = GlobalDataSource(arguments(write(tmp_path / "d.jsonl", rows)))
    (first,), (second,) = source.get_samples(2)
    assert first.prompt == second.prompt == [{"role": "assistant", "content": None, "tool_calls": call}]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda count: (), r"\(\) \(tuple\); expected a list of groups"),
        (lambda count: [], "0 groups; expected 2, or fewer, but one at least"),
        (lambda count: [[Sample(index=n)] for n in range(count + 1)], "3 groups; expected 2, or fewer"),
        (
            lambda count: [Sample(index=n) for n in range(count)],
            "where a group belongs; expected a list of at least one",
        ),
        (lambda count: [[Sample(index=0)], []], r"\[\] \(list\) where a group belongs"),
        (lambda count: [[Sample(index=0), {"index": 1}]], "where a group belongs"),
        (lambda count: [[Sample(index=0)]], "a group of 1 where --n-samples-per-prompt is 2"),
        (lambda count: [[Sample(index=n) for n in range(3)]], "a group of 3 where"),
        (
            lambda count: [[Sample(index=7), Sample(index=7)]],  # the number of the prompt
            r"a group of 1 where .* are \[7, 7\] .* each with an `index` of its own",
        ),
    ],
)
def test_a_source_that_returns_something_else_than_groups_is_named(returned: Any, said: str) -> None:
    class OwnSource:
        get_samples = staticmethod(returned)

    with pytest.raises(PluginError, match=rf"get_samples\(2\) of the data source OwnSource returned .*{said}"):
        next_groups(OwnSource(), 2, 2)  # type: ignore[arg-type]  # what it reads of one


def test_segments_of_a_buffered_trajectory_count_as_one_sample() -> None:
    segments = [Sample(index=0), Sample(index=1, rollout_id=1), Sample(index=2, rollout_id=1)]

    class OwnSource:
        get_samples = staticmethod(lambda count: [segments])

    assert next_groups(OwnSource(), 1, 2) == [segments]  # type: ignore[arg-type]  # what it reads of one
