"""A row that can be converted can be previewed and trained, and one that cannot is refused by all three."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.cli.main import main
from slime_core.data import Columns, GlobalDataSource, convert_file, read_conversation, sample_from_row
from slime_core.data.conversation import ROLES, chat_row
from slime_core.errors import DataError
from slime_core.sample import Sample
from slime_rollout_sft.arguments import SftArguments
from slime_rollout_sft.converters import messages as messages_as_they_are
from slime_rollout_sft.rollout import generate_rollout

QUESTION = {"role": "user", "content": "Hi?"}
ANSWER = {"role": "assistant", "content": "Hello!"}
CALL = {"name": "weather", "arguments": {"city": "Rome", "day": None}}
TOOL = {"name": "weather", "description": "Weather", "parameters": {"type": "object", "properties": {}}}


def chat(*messages: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": [QUESTION, *messages], **columns}


def calls(value: Any, content: Any = None) -> dict[str, Any]:
    return chat({"role": "assistant", "content": content, "tool_calls": value})


ACCEPTED = [
    chat(ANSWER),
    chat({**ANSWER, "name": None, "tool_calls": None, "step_loss_mask": None}),
    chat(ANSWER, {**ANSWER, "step_loss_mask": 0}),
    chat({**ANSWER, "reasoning_content": "Hmm."}),
    chat({**ANSWER, "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}),
    *(chat({"role": role, "content": "x"}, ANSWER) for role in ROLES),
    *(calls([call]) for call in (CALL, {"function": CALL}, json.dumps(CALL), {"type": "function", "function": CALL})),
    *(calls(text) for text in (json.dumps([CALL]), [{"name": "f", "arguments": '{"x": 1}'}], [{"name": "f"}])),
    *(calls(nothing, "Hello!") for nothing in ([], "[]", "", " ", "null")),
    *(chat(ANSWER, tools=tools) for tools in (None, [], "", " ", "[]", "null", [TOOL], json.dumps([TOOL]))),
    *(chat(ANSWER, tools=tools) for tools in ([{"type": "function", "function": TOOL}], [json.dumps(TOOL)])),
]
REFUSED: list[Any] = [
    {"messages": []},
    {"messages": "Hi"},
    {"message": [QUESTION, ANSWER]},
    chat("Hi"),
    chat({"content": "Hi"}),
    chat({"role": 1, "content": "Hi"}),
    chat({"role": "human", "content": "Hi"}, ANSWER),
    chat({"role": "assistant"}),
    chat({"role": "assistant", "reasoning_content": "Hmm."}),
    chat({**ANSWER, "content": 5}),
    chat({**ANSWER, "step_loss_mask": 2}),
    chat({**QUESTION, "step_loss_mask": "no"}, ANSWER),
    *(calls(value, "Hello!") for value in ({"name": "f"}, ["{"], "{", [5], [{}], [{"function": {}}], [{"name": 1}], 7)),
    *(chat(ANSWER, tools=tools) for tools in ("{", '{"name": "f"}', {"name": "f"}, [3], ["{"], 7)),
]
ONLY_PROMPTS = [
    {"messages": [QUESTION]},
    chat({"role": "user", "content": [{"type": "image", "url": "x.png"}]}, ANSWER),
]


@pytest.fixture
def convert(tmp_path: Path) -> Callable[[Path], Path]:
    def run(rows: Path) -> Path:
        convert_file([str(rows)], tmp_path / "converted.jsonl", messages_as_they_are)
        return tmp_path / "converted.jsonl"

    return run


@pytest.fixture
def train(default_arguments: Any, tiny_model: Path, components: Any) -> Callable[[Path], list[Sample]]:
    def run(rows: Path) -> list[Sample]:
        own = {"hf_checkpoint": str(tiny_model), "rollout_batch_size": 1, "input_key": "messages"}
        args = default_arguments(rows, groups=[SftArguments], **own)
        return generate_rollout(args, 0, GlobalDataSource(args), components=components(args)).samples

    return run


@pytest.fixture
def preview(tiny_model: Path) -> Callable[[Path], int]:
    return lambda rows: main(
        ["data", "preview", str(rows), "--input-key", "messages", "--hf-checkpoint", str(tiny_model)]
    )


def write(folder: Path, row: Any) -> Path:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return folder / "rows.jsonl"


@pytest.mark.parametrize("row", ACCEPTED, ids=str)
def test_convert_preview_and_training_accept_the_same_rows(
    tmp_path: Path, row: Any, convert: Any, preview: Any, train: Any
) -> None:
    rows = write(tmp_path, row)
    converted = convert(rows)
    assert preview(rows) == preview(converted) == 0
    (sample,), (again,) = train(rows), train(converted)
    assert (sample.tokens, sample.loss_mask) == (again.tokens, again.loss_mask)


@pytest.mark.parametrize("row", REFUSED, ids=str)
def test_convert_preview_and_training_refuse_the_same_rows(
    tmp_path: Path, row: Any, convert: Any, preview: Any, train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path, row)
    for use in (convert, train):
        with pytest.raises(DataError, match=rf"^{rows}:1: "):
            use(rows)
    assert preview(rows) == 1
    assert f"{rows}:1: " in capsys.readouterr().err


@pytest.mark.parametrize("row", ONLY_PROMPTS, ids=str)
def test_a_prompt_that_only_rl_can_use_is_converted_and_refused_where_masks_are_made(
    tmp_path: Path, row: Any, convert: Any, preview: Any, train: Any
) -> None:
    rows = convert(write(tmp_path, row))
    assert sample_from_row(Columns("messages"), json.loads(rows.read_text()), "f").prompt == row["messages"]
    assert preview(rows) == 1
    with pytest.raises(DataError, match=r"converted\.jsonl:1: (no message is of the assistant|message 2 has the part)"):
        train(rows)


VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, "", "x", "[]", "{", 0, 1, 2, True, [], {}, [CALL], json.dumps([CALL]), [{}], "null"]),
    st.just([{"type": "text", "text": "x"}]),
)
MESSAGES = st.lists(
    st.one_of(
        st.sampled_from([QUESTION, ANSWER]),
        st.dictionaries(st.sampled_from(["content", "tool_calls", "step_loss_mask", "thinking"]), VALUES).flatmap(
            lambda rest: st.sampled_from([*ROLES, "human", None]).map(lambda role: {"role": role, **rest})
        ),
    ),
    max_size=3,
)


def problem(read: Callable[..., Any], *given_to_it: Any) -> str | None:
    """Why `read` refuses what it is given, or None."""
    try:
        read(*given_to_it)
    except DataError as error:
        return str(error)
    return None


@given(MESSAGES, VALUES)
def test_what_is_checked_for_a_converter_is_what_is_checked_for_a_mask(messages: list[Any], tools: Any) -> None:
    found, when_masked = problem(chat_row, messages, tools), problem(read_conversation, messages, tools)
    if found:
        assert when_masked == f"{found}."
        return
    row = {"messages": messages, "tools": tools}
    assert sample_from_row(Columns("messages", tool_key="tools"), row, "f").prompt == chat_row(messages, tools)
    if when_masked:
        assert "no message is of the assistant" in when_masked or "only parts of the type text" in when_masked
        return
    conversation = read_conversation(messages, tools)
    assert read_conversation(conversation.messages, conversation.tools).messages == conversation.messages
    assert len(conversation.trained) == len(messages)
