"""What a model is asked in reinforcement learning and in evaluations is what it sees in fine-tuning, for every form that rows have
messages in and every kind of template; and nothing of it is lost in silence."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from slime_core.cli import main
from slime_core.data.notices import Notices
from slime_core.data.prompts import Prompt, read_prompt
from slime_core.data.samples import Columns, sample_from_row
from slime_core.errors import DataError
from slime_core.sample import Sample
from slime_rollout_sft.answers import question_of
from slime_rollout_sft.conversations import Conversations, Policy
from slime_rollout_sft.masks.generators import auto

_CHATML = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}CONTENT{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
_CALLS = "{%- for c in m.tool_calls or [] %}{{- '<call>' + c.function.name + (c.function.arguments) + '</call>' }}{%- endfor %}"
_AS_JSON = _CALLS.replace("arguments", "arguments|tojson")
TEMPLATES = {
    name: _CHATML.replace("CONTENT", content)
    for name, content in {
        "prints": "{{- m.content }}" + _AS_JSON,
        "concatenates": "{{- '' + m.content }}" + _AS_JSON,
        "wants parts": "{%- for p in m.content %}{{- p.text }}{%- endfor %}" + _AS_JSON,
        "wants arguments as text": "{{- m.content or '' }}" + _CALLS,
        "wants no content beside calls": "{%- if m.content is not defined %}"
        + _CALLS
        + "{%- else %}{{- '' + m.content }}{%- endif %}",
    }.items()
}
OF_FAMILIES = ("qwen2.5", "qwen3", "deepseek-v3", "llama-3.1", "glm-4", "gpt-oss", "smolvlm")

ASKED = {"role": "user", "content": "What is 2+2?"}
RESULT = {"role": "tool", "content": "4 it is", "tool_call_id": "c1"}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def call(arguments: Any, **message: Any) -> dict[str, Any]:
    function = {"name": "add", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function}], **message}


OBJECT = {"city": "Rome"}
FORMS: dict[str, list[dict[str, Any]]] = {
    "text": [ASKED],
    "one part": [{"role": "user", "content": parts("What is 2+2?")}],
    "two parts": [{"role": "user", "content": parts("What is ", "2+2?")}],
    "turns": [ASKED, {"role": "assistant", "content": "Four."}, {"role": "user", "content": parts("Sure?")}],
    "said twice": [ASKED, {"role": "assistant", "content": "Four."}, ASKED],
    "arguments as an object": [ASKED, call(OBJECT, content=""), RESULT],
    "arguments as text": [ASKED, call(json.dumps(OBJECT), content=None), RESULT],
    "arguments as an object, no content": [ASKED, call(OBJECT), RESULT],
    "a flat call": [ASKED, {"role": "assistant", "tool_calls": [{"name": "add", "arguments": OBJECT}]}, RESULT],
    "a legacy call": [
        ASKED,
        {"role": "assistant", "function_call": {"name": "add", "arguments": json.dumps(OBJECT)}},
        RESULT,
    ],
}
ANSWER = {"role": "assistant", "content": "It is four."}
ARGS: Any = SimpleNamespace(chat_template_date=None, apply_chat_template_kwargs={})

Load = Callable[[str], Any]


@pytest.fixture(scope="module")
def tokenizer(family: Load) -> Load:
    """`tokenizer(name)`: one of a family, or one with one of `TEMPLATES` or with this template."""
    own = copy.deepcopy(family("qwen3"))

    def load(name: str) -> Any:
        if name in OF_FAMILIES:
            return family(name)
        own.chat_template = TEMPLATES.get(name, name)
        return own

    return load


def asked(tokenizer: Any, messages: list[Any], notices: Notices | None = None, **columns: Any) -> Prompt:
    """What the model reads of a row."""
    sample = sample_from_row(Columns("messages", tool_key="tools"), {"messages": messages, **columns}, "rows.jsonl:1")
    return read_prompt(sample, tokenizer, ARGS, True, notices=notices or Notices(print))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [*TEMPLATES, *OF_FAMILIES])
def test_a_prompt_is_the_conversation_up_to_the_answer(tokenizer: Load, name: str, form: str) -> None:
    loaded = tokenizer(name)
    masked = auto(loaded, [*FORMS[form], ANSWER], None)
    prompt = asked(loaded, FORMS[form])
    seen = masked.text.partition("It is four.")[0]
    assert seen.startswith(prompt.text) or prompt.text.startswith(
        seen
    )  # whose headers of the answer may differ, such as <think>
    assert {item.what for item in prompt.dropped} <= {"tool call"}
    assert all(text in prompt.text for text in ("What is 2+2?", "Sure?") if text in json.dumps(FORMS[form]))
    assert not [garbage for garbage in ("'text'", '\\"city', "None") if garbage in prompt.text]


WRITE_TEXT = {"wants arguments as text", "wants no content beside calls", "qwen3", "deepseek-v3"}


@pytest.mark.parametrize("text", ['{"a":1}', '{ "a" : 1e5, "b": "\\u00e9" }', '{"a": 1, "a": 2}', "{}", ""])
@pytest.mark.parametrize("name", [*TEMPLATES, *OF_FAMILIES])
def test_arguments_that_are_text_stay_as_the_row_has_them_where_the_template_writes_text(
    tokenizer: Load, name: str, text: str
) -> None:
    loaded, messages = tokenizer(name), [ASKED, call(text, content=""), RESULT]
    seen = asked(loaded, messages).text
    if name not in WRITE_TEXT:
        assert seen == asked(loaded, [ASKED, call(json.loads(text or "{}"), content=""), RESULT]).text
        return
    assert (text or "{}") in seen
    if text and name in OF_FAMILIES:
        assert seen == loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("form", [f for f in FORMS if any("tool_calls" in m for m in FORMS[f])])
@pytest.mark.parametrize("name", [*TEMPLATES, *OF_FAMILIES])
def test_a_question_of_an_evaluation_is_what_a_prompt_is(tokenizer: Load, name: str, form: str) -> None:
    loaded = tokenizer(name)
    question = question_of(Sample(prompt=[*FORMS[form], ANSWER]))
    assert read_prompt(question, loaded, ARGS, True).tokens == asked(loaded, FORMS[form]).tokens


ORDINARY = {
    "text": [ASKED],
    "thoughts of earlier turns": [ASKED, {**ANSWER, "reasoning_content": "Hm."}, {"role": "user", "content": "And?"}],
    "thoughts in the content": [
        ASKED,
        {**ANSWER, "content": "<think>\nHm.\n</think>\n\n4"},
        {"role": "user", "content": "And?"},
    ],
    "a word of the template": [{"role": "user", "content": "user"}, ANSWER, {"role": "user", "content": "assistant"}],
    "blank lines": [{"role": "user", "content": "\n a  b \n\n"}],
    "unicode": [{"role": "user", "content": 'Grüße 🙂 "x" <b>'}],
    "system": [{"role": "system", "content": "Be brief."}, ASKED],
    "calls": [ASKED, call(OBJECT, content=""), RESULT],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
    }
]


@pytest.mark.parametrize("row", ORDINARY)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize(
    "name", ["smollm2", "llama-3", "gemma", "gemma-3", "phi-3", "cohere-2", "deepseek-r1-distill", *OF_FAMILIES]
)
def test_an_ordinary_row_has_the_tokens_of_its_messages_as_they_are(
    family: Load, name: str, tools: Any, row: str
) -> None:
    loaded, messages = family(name), ORDINARY[row]
    if name == "smolvlm":  # which wants parts
        messages = [{**m, "content": parts(m["content"])} for m in messages]
    try:
        as_it_is = loaded.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    except Exception:  # of the template: in another form it may be rendered
        pytest.skip("the template refuses the messages as they are")
    prompt = asked(loaded, messages, tools=tools)
    assert prompt.text == as_it_is
    assert prompt.tokens == loaded(as_it_is, add_special_tokens=False)["input_ids"]


TWO_QUESTIONS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"}, ANSWER, ASKED]
LAST_ONLY = _CHATML.replace("CONTENT", "{%- if loop.last %}{{- m.content }}{%- endif %}")
NO_QUESTIONS = _CHATML.replace("CONTENT", "{%- if m.role != 'user' %}{{- m.content }}{%- endif %}")
LOUD = _CHATML.replace("CONTENT", "{{- m.content|upper }}")


@pytest.mark.parametrize(
    ("text", "messages", "dropped"),
    [
        (LAST_ONLY, TWO_QUESTIONS, [1, 2, 3]),
        (LOUD, [ASKED], [1]),  # it is asked, in other letters
        (NO_QUESTIONS, [ASKED], None),
        (NO_QUESTIONS, [{"role": "user", "content": "is"}], None),  # which stands elsewhere
        (NO_QUESTIONS, [ASKED, call(OBJECT, content="Wait."), RESULT], None),
        (NO_QUESTIONS, [{"role": "narrator", "content": "Begin."}], []),
        (LAST_ONLY, [{"role": "system", "content": "Begin."}], []),
    ],
)
def test_a_question_that_is_gone_is_an_error_and_other_text_that_is_gone_is_known(
    tokenizer: Load, text: str, messages: list[Any], dropped: list[int] | None
) -> None:
    loaded = tokenizer(text)
    if dropped is None:
        with pytest.raises(
            DataError, match=r"^rows.jsonl:1: the chat template drops the content of message 1 \(user\)"
        ):
            asked(loaded, messages)
    else:
        assert [item.number for item in asked(loaded, messages).dropped] == dropped


@pytest.mark.parametrize("name", ["qwen3", "gemma", "llama-3.1", "deepseek-r1-distill"])
def test_tools_that_a_template_does_not_show_are_said_once(family: Load, name: str) -> None:
    said: list[str] = []
    notices, loaded = Notices(said.append), family(name)
    for _ in range(2):
        asked(loaded, [ASKED], notices, tools=TOOLS)
        asked(loaded, [ASKED], notices)
    shows = name in ("qwen3", "llama-3.1")
    assert [sentence.partition(",")[0] for sentence in said] == ["rows.jsonl:1: the row has definitions of tools"] * (
        not shows
    )


def test_a_prompt_that_ends_with_an_answer_is_told_of_once(tokenizer: Load) -> None:
    said: list[str] = []
    notices, loaded = Notices(said.append), tokenizer(TEMPLATES["prints"])
    for messages in ([ASKED], [ASKED, ANSWER, ASKED], [ASKED, ANSWER], [ASKED, ANSWER]):
        asked(loaded, messages, notices)
    assert len(said) == 1
    assert said[0].startswith("rows.jsonl:1: the prompt ends with a message of the assistant")


@pytest.fixture
def without_tools(tiny_model: Path, tmp_path: Path) -> str:
    """A checkpoint's tokenizer whose template shows no tools."""
    made = AutoTokenizer.from_pretrained(tiny_model)
    made.chat_template = TEMPLATES["prints"]
    made.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("words", [(), ("--apply-chat-template",)], ids=["SFT", "RL"])
def test_the_preview_says_once_that_tools_are_not_shown(
    without_tools: str, tmp_path: Path, capsys: Any, words: tuple[str, ...]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text((json.dumps({"messages": [ASKED, ANSWER], "tools": TOOLS}) + "\n") * 3)
    assert (
        main(["data", "preview", str(rows), "--hf-checkpoint", without_tools, "--input-key", "messages", *words]) == 0
    )
    assert capsys.readouterr().err.count("the chat template shows none") == 1


def test_a_run_says_once_that_tools_are_not_shown(without_tools: str, plugins: Any) -> None:
    said: list[str] = []
    policy = Policy(without_tools, "messages")
    conversations = Conversations(policy, plugins.select("loss_mask", "auto"), Notices(said.append))
    for _ in range(2):
        sample = sample_from_row(
            Columns("messages", tool_key="tools"), {"messages": [ASKED, ANSWER], "tools": TOOLS}, "r:1"
        )
        assert conversations.complete(sample) is not None
    assert sum("the chat template shows none" in sentence for sentence in said) == 1
