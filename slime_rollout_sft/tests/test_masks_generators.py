"""What the generators make of the whole range of conversations that data files hold, and what they refuse."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from slime_core.data.notices import Notices
from slime_core.errors import DataError
from slime_core.plugins import Plugins
from slime_core.sample import Sample
from slime_rollout_sft.conversations import masked_tokens
from slime_rollout_sft.masks.generators import auto, distill_qwen, last_turn
from slime_rollout_sft.masks.tokens import encode, straddles

Loader = Callable[[str], Any]

QUESTION = {"role": "user", "content": "Hi?"}
ANSWER = {"role": "assistant", "content": "Hello!"}
TOOL = {"name": "weather", "description": "Weather", "parameters": {"type": "object", "properties": {}}}


def trained_text(masked: Any) -> str:
    return "".join(
        masked.text[a:b] for (a, b), trained in zip(masked.offsets, masked.loss_mask, strict=True) if trained
    )


# ------------------------------------------------------------------------------------------------- selected by name


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("auto", auto),
        ("qwen", auto),
        ("qwen3", auto),
        ("qwen3_5", auto),
        ("last_turn", last_turn),
        ("distill_qwen", distill_qwen),
    ],
)
def test_slimes_names_select_generators(name: str, function: Callable[..., Any]) -> None:
    assert Plugins().select("loss_mask", name).target is function


def test_last_turn_trains_the_last_answer_only(family: Loader) -> None:
    messages = [QUESTION, ANSWER, QUESTION, {"role": "assistant", "content": "Again!"}, QUESTION]
    assert trained_text(auto(family("qwen2.5"), messages, None)) == "Hello!<|im_end|>Again!<|im_end|>"
    assert trained_text(last_turn(family("qwen2.5"), messages, None)) == "Again!<|im_end|>"


THOUGHT = {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}


@pytest.mark.parametrize(
    "answer", [THOUGHT, {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nFour."}]
)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deepseek-r1-distill", "Two and two.\n</think>\n\nFour.<｜end▁of▁sentence｜>"),  # prompts with <think>
        ("qwen3", "<think>\nTwo and two.\n</think>\n\nFour.<|im_end|>"),
        ("phi-3", "<think>\nTwo and two.\n</think>\n\nFour.<|end|>"),
    ],
)
def test_distill_qwen_trains_reasoning_that_the_template_would_drop(
    family: Loader, answer: dict[str, Any], name: str, expected: str
) -> None:
    tokenizer = family(name)
    masked = distill_qwen(tokenizer, [QUESTION, ANSWER, QUESTION, answer], None)
    prompt = tokenizer.apply_chat_template([QUESTION, ANSWER, QUESTION], tokenize=False, add_generation_prompt=True)
    assert masked.text == prompt + expected
    assert trained_text(masked) == expected
    assert masked.token_ids == tokenizer(masked.text, add_special_tokens=False)["input_ids"]
    assert masked.warnings == []
    left_out = distill_qwen(tokenizer, [QUESTION, {**answer, "step_loss_mask": 0}], None)
    assert 1 not in left_out.loss_mask


@pytest.mark.parametrize(
    "messages",
    [
        [QUESTION, ANSWER, QUESTION],
        [ANSWER],
        [QUESTION, {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}],
    ],
)
def test_distill_qwen_refuses_what_has_no_answer_at_the_end(family: Loader, messages: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError, match="Use auto"):
        distill_qwen(family("qwen3"), messages, None)


# ---------------------------------------------------------------------------------------------- forms of the same row


def test_content_in_parts_is_the_same_as_text(family: Loader) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]
    assert auto(family("qwen3"), [QUESTION, {**ANSWER, "content": parts}], None) == auto(
        family("qwen3"), [QUESTION, ANSWER], None
    )


def test_none_values_of_arrow_files_are_as_if_absent(family: Loader) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    plain = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "sun"}]
    padded_call = {
        "id": None,
        "type": "function",
        "function": {"name": "weather", "arguments": {"city": "Rome"}, "strict": None},
    }
    padded = [
        {**QUESTION, "tool_calls": None, "step_loss_mask": None, "name": None},
        {"role": "assistant", "content": None, "tool_calls": [padded_call], "reasoning_content": None},
        {"role": "tool", "content": "sun", "tool_calls": []},
    ]
    for name in ("qwen3", "llama-3.1"):
        assert auto(family(name), padded, None) == auto(family(name), plain, None)


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        [{"type": "function", "function": TOOL}],
        json.dumps([TOOL]),
        [json.dumps({"type": "function", "function": TOOL})],
    ],
    ids=["flat", "nested", "JSON text", "list of JSON text"],
)
def test_tools_may_come_in_every_usual_form(family: Loader, tools: Any) -> None:
    tokenizer = family("qwen3")
    expected = tokenizer.apply_chat_template(
        [QUESTION, ANSWER], tools=[{"type": "function", "function": TOOL}], tokenize=False
    )
    assert auto(tokenizer, [QUESTION, ANSWER], tools).text == expected


def test_tools_of_a_rows_metadata_are_the_conversations(family: Loader) -> None:
    def tokens(sample: Sample) -> list[int]:
        return masked_tokens(sample, family("qwen3"), auto, Notices(print)).token_ids  # type: ignore[arg-type]  # a generator as it is

    expected = auto(family("qwen3"), [QUESTION, ANSWER], [TOOL]).token_ids
    for tools in ([TOOL], json.dumps([TOOL])):
        assert tokens(Sample(prompt=[QUESTION, ANSWER], metadata={"tools": tools})) == expected
    own = Sample(prompt=[QUESTION, ANSWER], metadata={"tools": [{**TOOL, "name": "other"}]})
    own.note(tools=[TOOL])  # of its column
    assert tokens(own) == expected
    with pytest.raises(DataError, match='in its metadata, where fine-tuning looks for "tools", the tools'):
        tokens(Sample(prompt=[QUESTION, ANSWER], metadata={"tools": 3}))


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_no_tools_may_come_in_every_usual_form(family: Loader, tools: Any) -> None:
    assert auto(family("qwen3"), [QUESTION, ANSWER], tools) == auto(family("qwen3"), [QUESTION, ANSWER], None)


@pytest.mark.parametrize("arguments", ['{"city": "Rome"}', {"city": "Rome"}])
def test_tool_arguments_are_never_quoted_twice(family: Loader, arguments: Any) -> None:
    flat = {"name": "weather", "arguments": arguments}
    for call in (flat, {"function": flat}, json.dumps(flat)):
        masked = auto(family("qwen2.5"), [QUESTION, {"role": "assistant", "tool_calls": [call]}], None)
        assert '{"name": "weather", "arguments": {"city": "Rome"}}' in trained_text(masked)


def test_arguments_that_a_template_would_show_as_python_become_json(family: Loader) -> None:
    tokenizer = copy.deepcopy(family("smollm2"))
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls %}{{ c.function.name }} {{ c.function.arguments }}{% endfor %}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    masked = auto(tokenizer, [QUESTION, {"role": "assistant", "tool_calls": [call]}], None)
    assert trained_text(masked) == 'weather {"city": "Rome"}<|im_end|>'
    assert masked.warnings == []


def test_messages_are_not_changed(family: Loader) -> None:
    call = {"name": "weather", "arguments": '{"city": "Rome"}'}
    messages = [QUESTION, {"role": "assistant", "content": None, "tool_calls": [call], "step_loss_mask": 1}]
    before = copy.deepcopy(messages)
    auto(family("qwen3"), messages, [TOOL])
    assert messages == before


def test_an_answer_before_any_question_is_found(family: Loader) -> None:
    messages = [ANSWER, QUESTION, {"role": "assistant", "content": "Fine."}]
    for name, first in (
        ("qwen2.5", "Hello!<|im_end|>"),
        ("qwen3", "Hello!<|im_end|>"),
        ("llama-3.1", "Hello!<|eot_id|>"),
        ("smolvlm", " Hello!<end_of_utterance>"),
    ):
        assert trained_text(auto(family(name), messages, None)).startswith(first)


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"the messages are \[\], expected a list of at least one message\.$"),
        ("Hi", 'the messages are "Hi"'),
        ([QUESTION, "Hi"], 'message 2 is "Hi", expected an object'),
        ([{"content": "Hi"}], "message 1 has the role null, expected a text such as 'user'; it has content"),
        ([{"role": "human", "content": "Hi"}], "message 1 has the unknown role 'human'; known roles are: system, dev"),
        ([QUESTION], "no message is of the assistant, so nothing can be trained; the roles are: user"),
        ([QUESTION, {"role": "assistant"}], r"message 2 \(assistant\) has neither content nor tool_calls"),
        ([QUESTION, {"role": "assistant", "content": 5}], r"message 2 \(assistant\) has the content 5, expected text"),
        ([QUESTION, {**ANSWER, "content": [{"type": "image"}]}], 'message 2 has the part {"type": "image"}'),
        ([QUESTION, {**ANSWER, "step_loss_mask": 2}], "message 2 has step_loss_mask 2; expected 0"),
        (
            [QUESTION, {**ANSWER, "tool_calls": [{"function": {}}]}],
            "message 2 has the tool call .*; expected an object",
        ),
        ([QUESTION, {**ANSWER, "tool_calls": ["{"]}], 'a tool call of message 2: "{" is no valid JSON'),
    ],
)
def test_a_malformed_conversation_is_an_error_that_names_the_message(
    family: Loader, messages: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        auto(family("qwen3"), messages, None)


@pytest.mark.parametrize(
    ("tools", "message"), [("{", "no valid JSON"), ('{"a": 1}', "expected a list of tool definitions"), ([3], "is 3")]
)
def test_malformed_tools_are_an_error(family: Loader, tools: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        auto(family("qwen3"), [QUESTION, ANSWER], tools)


def test_a_refusing_template_is_quoted_and_chained(family: Loader) -> None:
    with pytest.raises(
        DataError, match="the chat template refuses the conversation: System role not supported"
    ) as error:
        auto(family("gemma"), [{"role": "system", "content": "Be kind."}, QUESTION, ANSWER], None)
    assert error.value.__cause__ is not None


def test_turns_that_cannot_be_told_apart_are_an_error(family: Loader) -> None:
    tokenizer = copy.deepcopy(family("smollm2"))
    tokenizer.chat_template = "{% for m in messages[::-1] %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    messages = [QUESTION, ANSWER, QUESTION, {"role": "assistant", "content": "Fine."}]
    with pytest.raises(DataError, match="message 4 cannot be located in the chat template's rendering"):
        auto(tokenizer, messages, None)


def test_a_tokenizer_without_template_is_an_error(family: Loader) -> None:
    tokenizer = copy.deepcopy(family("smollm2"))
    tokenizer.chat_template = None
    with pytest.raises(
        DataError, match=r"has no chat template\. Put one into its folder, as the file chat_template\.jinja"
    ):
        auto(tokenizer, [QUESTION, ANSWER], None)


def test_a_tokenizer_without_positions_is_an_error() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="Slow, which cannot tell"):
        encode(Slow(), "text")


# ---------------------------------------------------------------------------------------------------------- warnings


def test_no_trained_token_is_a_warning(family: Loader) -> None:
    masked = auto(family("qwen3"), [QUESTION, {**ANSWER, "step_loss_mask": 0}], None)
    assert masked.warnings == ["no token is trained"]
    assert set(masked.loss_mask) == {0}


@pytest.mark.parametrize(
    ("name", "message", "warning"),
    [
        (
            "llama-3",
            {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]},
            "tool call",
        ),
        ("gemma", {**ANSWER, "reasoning_content": "Hmm."}, "reasoning of message 2 .assistant.: 'Hmm.'"),
    ],
)
def test_what_the_template_drops_is_a_warning(family: Loader, name: str, message: dict[str, Any], warning: str) -> None:
    warnings = auto(family(name), [QUESTION, message], None).warnings
    assert any(re.search(f"the chat template drops the {warning}", item) for item in warnings)


def test_dropped_content_of_any_message_is_a_warning(family: Loader) -> None:
    messages = [QUESTION, ANSWER, {"role": "tool", "content": "sunny"}, ANSWER]
    assert (
        "the chat template drops the content of message 3 (tool): 'sunny'"
        in auto(family("phi-3"), messages, None).warnings
    )


def test_a_token_over_the_start_of_a_turn_is_not_trained_and_is_a_warning(family: Loader) -> None:
    tokenizer = family("qwen2.5")
    masked = auto(tokenizer, [QUESTION, {"role": "assistant", "content": "\nHello!"}], None)
    assert masked.warnings == ["a token reaches over the start of message 2; it is not trained"]
    assert trained_text(masked) == "Hello!<|im_end|>"
    assert straddles(masked.offsets, masked.text.index("assistant\n\n") + len("assistant\n"))


def test_text_outside_the_vocabulary_is_a_warning() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.WordLevel({"?": 0, "user": 1, "assistant": 2, "Hi": 3}, unk_token="?"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="?")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi you"}]
    assert any("their text is not in the vocabulary" in w for w in auto(tokenizer, messages, None).warnings)


def test_a_changed_tokenisation_after_decoding_is_a_warning() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(
        models.WordLevel({"user": 0, "assistant": 1, "Hi": 2, "HiHi": 3, "assistantHi": 4, "u": 5}, unk_token="u")
    )
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.decoder = decoders.Fuse()  # writes words without the spaces between them
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi Hi"}]
    warnings = auto(tokenizer, messages, None).warnings
    assert "the decoded tokens give other tokens when they are encoded again" in warnings


# ----------------------------------------------------------------------------------------------------------- offsets


def test_offsets_leave_no_gap_where_the_tokenizer_leaves_spaces_out(family: Loader) -> None:
    from tokenizers import processors

    exact = family("qwen2.5")
    trimming = copy.deepcopy(exact)
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    messages = [QUESTION, {"role": "assistant", "content": "It is  4 😀 now."}]
    text = exact.apply_chat_template(messages, tokenize=False)
    raw = trimming(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ids, offsets = encode(exact, text)
    assert raw != offsets  # it does leave them out
    assert encode(trimming, text) == (ids, offsets)
    assert offsets[0][0] == 0
    assert all(start <= end for (_, end), (start, _) in pairwise(offsets))
    assert auto(trimming, messages, None) == auto(exact, messages, None)
