"""A row that can be converted can be previewed and trained, and one that cannot is refused by all three."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slime_core.cli import main
from slime_core.data import Columns, GlobalDataSource, convert_file, open_rows, read_conversation, sample_from_row
from slime_core.data.conversation import REASONING_KEYS, ROLES, chat_row
from slime_core.data.flags import FLAGS
from slime_core.data.notices import Notices
from slime_core.data.tokenizer import load_tokenizer
from slime_core.errors import DataError
from slime_core.plugins import Plugins
from slime_core.sample import Sample
from slime_rollout_sft.arguments import SftArguments
from slime_rollout_sft.conversations import Conversations, Policy
from slime_rollout_sft.converters import messages as messages_as_they_are
from slime_rollout_sft.lint import look_at
from slime_rollout_sft.looks import as_conversations
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
    *(chat({**ANSWER, flag: off}, ANSWER) for flag in FLAGS for off in (0, False, 0.0)),
    *(chat({**ANSWER, flag: on}) for flag in FLAGS for on in (1, True, 1.0, None)),
    chat({"role": "assistant", "content": "", "function_call": CALL}),
    chat({"role": "assistant", "content": None, "function_call": {**CALL, "arguments": json.dumps(CALL["arguments"])}}),
    chat({**ANSWER, "function_call": None}, {"role": "function", "name": "weather", "content": "sun"}, ANSWER),
    chat({"role": "assistant", "content": None, "reasoning_content": "Hmm."}),
    chat({"role": "assistant", "content": "", "step_loss_mask": 0}, ANSWER),
    chat(ANSWER, weight=1, train=True, id="x", split="train"),
    {"messages": [{"role": "system", "content": "s"}, QUESTION, ANSWER], "system": "s"},
    chat(ANSWER, metadata={"source": "workshop", "dataset": "d", "tools": [{"name": "hammer"}], "none": None}),
    chat(ANSWER, images=[], system="", functions=None, chat_template_kwargs={}),
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
    chat({**ANSWER, "content": 5}),
    chat({**ANSWER, "step_loss_mask": 2}),
    chat({**QUESTION, "step_loss_mask": "no"}, ANSWER),
    *(chat({**ANSWER, flag: value}) for flag in FLAGS for value in (0.5, 2, "0", [1])),
    chat({**ANSWER, "weight": 0, "train": True}, ANSWER),
    chat({**ANSWER, "function_call": CALL, "tool_calls": [CALL]}),
    *(chat({**ANSWER, "function_call": value}) for value in (5, "{", [CALL])),
    *(
        chat({**ANSWER, "content": value})
        for value in (["a"], [5], [{"type": "text", "value": "x"}], [{"text": "x"}], {})
    ),
    *(chat({**ANSWER, "content": value}) for value in ("", " \n", [], [{"type": "text", "text": " "}])),
    *(chat({**ANSWER, "content": "", "tool_calls": value}) for value in ([], "[]", None)),
    *(chat({**ANSWER, key: 5}) for key in REASONING_KEYS),
    chat({**ANSWER, "reasoning": "a", "thinking": "b"}),
    chat({**QUESTION, "tool_calls": [CALL]}, ANSWER),
    chat({**QUESTION, "images": ["x.png"]}, ANSWER),
    chat({"role": "user", "content": [{"type": "image", "url": "x.png"}]}, ANSWER),
    *(calls([{"name": "f", "arguments": value}], "Hello!") for value in (5, [], "9" * 5000, "[" * 2000, '"\\ud800"')),
    *(calls(value, "Hello!") for value in (0, False, {}, "9" * 5000, "[" * 100_000, '["\\ud800"]')),
    *(chat(ANSWER, tools=tools) for tools in ("9" * 5000, "[" * 100_000, '["\\ud800"]')),
    *(chat(ANSWER, metadata=value) for value in ("{", 5, [1], "[1]", {"slime": 1})),
    *(chat(ANSWER, **column) for column in ({"weight": 0}, {"train": False}, {"loss_mask": [0, 1]}, {"system": "s"})),
    *(
        chat(ANSWER, **column)
        for column in ({"images": ["x"]}, {"functions": [TOOL]}, {"chat_template_kwargs": {"a": 1}})
    ),
    *(calls(value, "Hello!") for value in ({"name": "f"}, ["{"], "{", [5], [{}], [{"function": {}}], [{"name": 1}], 7)),
    *(chat(ANSWER, tools=tools) for tools in ("{", '{"name": "f"}', {"name": "f"}, [3], ["{"], 7)),
]
ONLY_PROMPTS = [{"messages": [QUESTION]}]


def named(row: Any) -> str:
    """A name of a row for pytest."""
    return str(row)[:120]


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
        own |= {"dropped_text": "train"}  # the tiny template knows neither tools nor reasoning
        args = default_arguments(rows, groups=[SftArguments], **own)
        return generate_rollout(args, 0, GlobalDataSource(args), components=components(args)).samples

    return run


@pytest.fixture
def preview(tiny_model: Path) -> Callable[[Path], int]:
    return lambda rows: main(
        [
            "data",
            "preview",
            str(rows),
            "--input-key",
            "messages",
            "--hf-checkpoint",
            str(tiny_model),
            "--dropped-text",
            "train",
        ]
    )


def write(folder: Path, row: Any) -> Path:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return folder / "rows.jsonl"


@pytest.mark.parametrize("row", ACCEPTED, ids=named)
def test_convert_preview_and_training_accept_the_same_rows(
    tmp_path: Path, row: Any, convert: Any, preview: Any, train: Any
) -> None:
    rows = write(tmp_path, row)
    converted = convert(rows)
    assert preview(rows) == preview(converted) == 0
    (sample,), (again,) = train(rows), train(converted)
    assert (sample.tokens, sample.loss_mask) == (again.tokens, again.loss_mask)


@pytest.mark.parametrize("row", REFUSED, ids=named)
def test_convert_preview_and_training_refuse_the_same_rows(
    tmp_path: Path, row: Any, convert: Any, preview: Any, train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path, row)
    said = []
    for use in (convert, train):
        with pytest.raises(DataError, match=rf"^{rows}:1: ") as caught:
            use(rows)
        said.append(str(caught.value).removesuffix(" (--malformed-row skip leaves such rows out.)"))
    capsys.readouterr()
    assert preview(rows) == 1
    shown = capsys.readouterr().err
    assert f"{rows}:1: " in shown
    if isinstance(row.get("messages"), list):  # what is no list is no row of messages for the converter alone
        assert said[0] == said[1]
        assert said[0] in shown


@pytest.mark.parametrize("row", ONLY_PROMPTS, ids=str)
def test_a_prompt_that_only_rl_can_use_is_converted_and_refused_where_masks_are_made(
    tmp_path: Path, row: Any, convert: Any, preview: Any, train: Any
) -> None:
    rows = convert(write(tmp_path, row))
    assert sample_from_row(Columns("messages"), json.loads(rows.read_text()), "f").prompt == row["messages"]
    assert preview(rows) == 1
    with pytest.raises(DataError, match=r"converted\.jsonl:1: no message is of the assistant"):
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
        assert "no message is of the assistant" in when_masked
        return
    conversation = read_conversation(messages, tools)
    assert read_conversation(conversation.messages, conversation.tools).messages == conversation.messages
    assert len(conversation.trained) == len(messages)


ROW_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "assistant", "tool", "system"])},
        optional={
            "content": st.sampled_from(["x", "Hello there", "", None, ["a"], [{"type": "text", "text": "p"}], 5]),
            "tool_calls": st.sampled_from(
                [None, [], [CALL], json.dumps([CALL]), [{"name": "f", "arguments": {"a": None}}], 0]
            ),
            "function_call": st.sampled_from([None, CALL, 5]),
            "reasoning_content": st.sampled_from([None, "Hmm.", 5]),
            "weight": st.sampled_from([0, 1, None, 0.5]),
            "train": st.sampled_from([True, False, None]),
            "mood": st.sampled_from(["calm", None, {"a": None}]),
        },
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    messages=ROW_MESSAGES,
    tools=st.sampled_from([None, [TOOL], json.dumps([TOOL]), "{", []]),
    metadata=st.sampled_from([None, {"a": None}, "{", {"source": "s"}]),
    dropped=st.sampled_from(["error", "train"]),
)
def test_convert_preview_and_training_agree_on_random_rows(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    default_arguments: Any,
    components: Any,
    messages: Any,
    tools: Any,
    metadata: Any,
    dropped: str,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    rows = write(folder, {"messages": messages, "tools": tools, "metadata": metadata})
    expected, refused = seen(rows, dropped, tiny_model, default_arguments, components), None
    for name in ("converted.jsonl", "converted.parquet"):
        refused = problem(convert_file, [str(rows)], folder / name, messages_as_they_are)
        if refused is None:
            assert seen(folder / name, dropped, tiny_model, default_arguments, components) == expected
        else:
            assert refused == f"{rows}:1: {expected}"
    if refused is None and isinstance(expected, str):
        assert re.match("no message is of the assistant|no token of the conversation|the chat template drops", expected)


def seen(path: Path, dropped: str, model: Path, default_arguments: Any, components: Any) -> Any:
    """Return token ids, mask and metadata of the row of a file, or why it is refused; the preview and a run must agree."""
    own = {"hf_checkpoint": str(model), "rollout_batch_size": 1, "input_key": "messages", "dropped_text": dropped}
    args = default_arguments(path, groups=[SftArguments], **own)
    loss_mask = Plugins().select("loss_mask", "auto")
    conversations = Conversations(Policy.of(args), loss_mask, Notices())
    look = as_conversations(conversations, load_tokenizer(str(model)), {})
    (looked,) = look_at(open_rows([str(path)]), Columns.of(args), look, False, Notices())
    try:
        (sample,) = generate_rollout(args, 0, GlobalDataSource(args), components=components(args)).samples
    except DataError as error:
        said = str(error).removesuffix(" (--malformed-row skip leaves such rows out.)")
        assert (looked.fate, f"{path}:1: {looked.problem}") == ("stops", said)
        return looked.problem
    assert looked.fate == "used"
    assert looked.masked is not None
    prompt = len(sample.tokens) - sample.response_length
    assert (looked.masked.token_ids, looked.masked.loss_mask) == (sample.tokens, [0] * prompt + sample.trained_mask)
    assert len(looked.roles) == len(sample.tokens)
    return sample.tokens, sample.trained_mask, {key: v for key, v in sample.metadata.items() if key != "slime"}
