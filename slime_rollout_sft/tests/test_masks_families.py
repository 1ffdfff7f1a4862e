"""The trained tokens are tokens of the whole rendering, and exactly the assistant's text and what ends its turn."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slime_core.contracts.data import MaskedTokens
from slime_rollout_sft.masks.generators import auto, last_turn

Messages = list[dict[str, Any]]
Loader = Callable[[str], Any]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(city: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}


class Shape(NamedTuple):
    """What a family's template writes around an answer, as far as it is generated."""

    end: str
    before: str = ""
    before_last: str | None = None
    end_last: str | None = None
    has_system: bool = True


EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
SHAPES = {
    "smollm2": Shape("<|im_end|>"),
    "qwen2.5": Shape("<|im_end|>"),
    "qwen3": Shape("<|im_end|>", before_last=EMPTY_THOUGHT),  # shows no empty thought in earlier turns
    "deepseek-v3": Shape("<｜end▁of▁sentence｜>"),
    "deepseek-r1-distill": Shape("<｜end▁of▁sentence｜>"),
    "llama-3": Shape("<|eot_id|>"),
    "llama-3.1": Shape("<|eot_id|>"),
    "gemma": Shape("<end_of_turn>", has_system=False),
    "gemma-3": Shape("<end_of_turn>"),
    "glm-4": Shape("<|user|>", before="\n<think></think>\n", end_last=""),  # ends a turn by naming the next speaker
    "phi-3": Shape("<|end|>"),
    "gpt-oss": Shape("<|end|>", before="<|channel|>final<|message|>", end_last="<|return|>"),
    "cohere-2": Shape("<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "smolvlm": Shape("<end_of_utterance>", before=" "),
}


def expected_turns(name: str, messages: Messages) -> list[str]:
    """What should be trained in a conversation of plain texts, turn after turn. Consults no template."""
    shape, turns = SHAPES[name], []
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("step_loss_mask", 1):
            is_last = i == len(messages) - 1
            before = shape.before_last if is_last and shape.before_last is not None else shape.before
            end = shape.end_last if is_last and shape.end_last is not None else shape.end
            turns.append(before + message["content"] + end)
    return turns


def trained_turns(masked: MaskedTokens, tokenizer: Any) -> list[str]:
    """The text of every run of trained tokens, from the ids alone."""
    runs: list[list[int]] = []
    previous = 0
    for token, trained in zip(masked.token_ids, masked.loss_mask, strict=True):
        if trained and not previous:
            runs.append([])
        if trained:
            runs[-1].append(token)
        previous = trained
    return [tokenizer.decode(run) for run in runs]


def violations(
    masked: MaskedTokens, tokenizer: Any, messages: Messages, tools: Any, expected: list[str] | None
) -> list[str]:
    """Every way in which `masked` breaks the promises of a loss mask."""
    plain = [{key: value for key, value in message.items() if key != "step_loss_mask"} for message in messages]
    text = tokenizer.apply_chat_template(plain, tools=tools, tokenize=False)
    found = []
    if masked.token_ids != tokenizer(text, add_special_tokens=False)["input_ids"]:
        found.append("the ids are not those of the whole rendering")
    if len(masked.loss_mask) != len(masked.token_ids) or set(masked.loss_mask) - {0, 1}:
        found.append("the mask does not have one 0 or 1 for each token")
    elif expected is not None and [nfc(t) for t in trained_turns(masked, tokenizer)] != [nfc(t) for t in expected]:
        found.append(f"trained is {trained_turns(masked, tokenizer)}, expected {expected}")
    return found


def nfc(text: str) -> str:
    """Qwen's tokenizers normalise text so."""
    return unicodedata.normalize("NFC", text)


SYSTEM = {"role": "system", "content": "Be kind."}
CONVERSATIONS = {
    "one turn": [user("Hi?"), assistant("Hello there!")],
    "many turns": [
        user("Hi?"),
        assistant("Hello!"),
        user("2+2?"),
        assistant("It is 4."),
        user("ok"),
        assistant("Bye."),
    ],
    "same text": [user("x"), assistant("x"), user("x"), assistant("x")],
    "system": [SYSTEM, user("Hi?"), assistant("Hello!")],
    "emoji and CJK": [user("你好吗？🤖"), assistant("很好 😀👩‍👩‍👧 naïve 日本語。"), user("👍"), assistant("再见🎉")],
    "left out": [user("a"), assistant("One.", step_loss_mask=0), user("b"), assistant("Two.", step_loss_mask=1)],
    "no answer to the last": [user("a"), assistant("One."), user("b")],
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_exactly_the_assistants_text_and_its_end_is_trained(family: Loader, name: str, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    if messages[0]["role"] == "system" and not SHAPES[name].has_system:
        pytest.skip("the template knows no system message")
    if name == "smolvlm":  # wants content in parts, which the masks find out themselves
        masked = auto(family(name), messages, None)
        assert trained_turns(masked, family(name)) == expected_turns(name, messages)
        return
    masked = auto(family(name), messages, None)
    assert violations(masked, family(name), messages, None, expected_turns(name, messages)) == []


def test_a_turn_without_an_end_token_is_reported(family: Loader) -> None:
    masked = auto(family("glm-4"), CONVERSATIONS["many turns"], None)
    assert masked.warnings == ["no token ends the turn of message 6: the model does not learn to stop there"]
    assert auto(family("qwen3"), CONVERSATIONS["many turns"], None).warnings == []


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
TOOL_TURNS = [
    user("Weather in Paris and Rome?"),
    assistant("", tool_calls=[call("Paris"), call("Rome")]),
    {"role": "tool", "name": "weather", "content": "sunny"},
    {"role": "tool", "name": "weather", "content": "rain"},
    assistant("Sun and rain."),
    user("Thanks"),
    assistant("Welcome."),
]
QWEN_CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
)
GLM_CALL = "\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>{}</arg_value>\n</tool_call>"
DEEPSEEK_CALL = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "%s"}\n```<｜tool▁call▁end｜>'
TOOLS_EXPECTED = {
    "qwen2.5": [QWEN_CALLS, "Sun and rain.<|im_end|>", "Welcome.<|im_end|>"],
    "qwen3": [QWEN_CALLS, "Sun and rain.<|im_end|>", f"{EMPTY_THOUGHT}Welcome.<|im_end|>"],
    "glm-4": [
        f"\n<think></think>{GLM_CALL.format('Paris')}{GLM_CALL.format('Rome')}<|observation|>",
        "\n<think></think>\nSun and rain.<|user|>",
        "\n<think></think>\nWelcome.",
    ],
    "deepseek-v3": [
        f"<｜tool▁calls▁begin｜>{DEEPSEEK_CALL % 'Paris'}\n{DEEPSEEK_CALL % 'Rome'}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
        "Sun and rain.<｜end▁of▁sentence｜>",  # not the <｜tool▁outputs▁end｜> that the template writes in front
        "Welcome.<｜end▁of▁sentence｜>",
    ],
}


@pytest.mark.parametrize("name", TOOLS_EXPECTED)
@pytest.mark.parametrize("as_text", [False, True], ids=["arguments as object", "arguments as JSON text"])
def test_tool_calls_are_trained_and_consecutive_tool_results_are_not(family: Loader, name: str, as_text: bool) -> None:
    messages = TOOL_TURNS
    if as_text:
        texted = [
            {**c, "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"])}}
            for c in TOOL_TURNS[1]["tool_calls"]
        ]
        messages = [TOOL_TURNS[0], assistant("", tool_calls=texted), *TOOL_TURNS[2:]]
    masked = auto(family(name), messages, TOOLS)
    assert trained_turns(masked, family(name)) == TOOLS_EXPECTED[name]
    if name != "deepseek-v3":  # whose template takes arguments only as JSON text
        assert violations(masked, family(name), TOOL_TURNS, TOOLS, TOOLS_EXPECTED[name]) == []


def test_a_single_tool_call_of_llama_is_trained(family: Loader) -> None:
    messages = [
        user("Paris?"),
        assistant("", tool_calls=[call("Paris")]),
        {"role": "tool", "content": "sun"},
        assistant("Sun."),
    ]
    expected = ['{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>', "Sun.<|eot_id|>"]
    masked = auto(family("llama-3.1"), messages, TOOLS)
    assert violations(masked, family("llama-3.1"), messages, TOOLS, expected) == []
    assert masked.warnings == []


THOUGHTS = [
    user("a"),
    assistant("One.", reasoning_content="First thought."),
    user("b"),
    assistant("Two.", reasoning_content="Second idea."),
]
INLINE = [
    user("a"),
    assistant("<think>\nFirst thought.\n</think>\n\nOne."),
    user("b"),
    assistant("<think>\nSecond idea.\n</think>\n\nTwo."),
]


@pytest.mark.parametrize("messages", [THOUGHTS, INLINE], ids=["reasoning_content", "inline"])
def test_the_think_block_that_the_rendering_shows_is_trained(family: Loader, messages: Messages) -> None:
    expected = ["One.<|im_end|>", "<think>\nSecond idea.\n</think>\n\nTwo.<|im_end|>"]
    masked = auto(family("qwen3"), messages, None)
    assert violations(masked, family("qwen3"), messages, None, expected) == []
    assert masked.warnings == ["the chat template drops the reasoning of message 2 (assistant): 'First thought.'"]
    glm = auto(family("glm-4"), messages, None)
    assert trained_turns(glm, family("glm-4")) == [
        "\n<think></think>\nOne.<|user|>",
        "\n<think>Second idea.</think>\nTwo.",
    ]


def test_thoughts_between_tool_calls_of_one_question_are_trained_as_rendered(family: Loader) -> None:
    messages = [
        user("a"),
        assistant("", reasoning_content="Look it up.", tool_calls=[call("Paris")]),
        {"role": "tool", "content": "sun"},
        assistant("Sun.", reasoning_content="Good."),
    ]
    expected = [
        '<think>\nLook it up.\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n'
        "</tool_call><|im_end|>",
        "<think>\nGood.\n</think>\n\nSun.<|im_end|>",
    ]
    masked = auto(family("qwen3"), messages, TOOLS)
    assert violations(masked, family("qwen3"), messages, TOOLS, expected) == []
    # Once another question follows, the template leaves all of that out.
    longer = [*messages, user("b"), assistant("Bye.")]
    expected = [expected[0].partition("</think>\n\n")[2], "Sun.<|im_end|>", f"{EMPTY_THOUGHT}Bye.<|im_end|>"]
    assert violations(auto(family("qwen3"), longer, TOOLS), family("qwen3"), longer, TOOLS, expected) == []


# ------------------------------------------------------------------------------------------- random conversations

CHARACTERS = st.one_of(
    st.characters(categories=("Ll", "Lu", "Lo", "Nd", "Po"), exclude_characters="<>"),
    st.sampled_from(" \n\t😀👩‍👧你好é'\"{}|/"),
)
TEXT = st.text(CHARACTERS, min_size=1, max_size=30).map(str.strip).filter(bool)


@st.composite
def conversations(draw: st.DrawFn, has_system: bool) -> Messages:
    messages = [{"role": "system", "content": draw(TEXT)}] if has_system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        messages.append(user(draw(TEXT)))
        step = draw(st.sampled_from(({}, {"step_loss_mask": 0}, {"step_loss_mask": 1})))
        messages.append(assistant(draw(TEXT), **step))
    return messages


RELAXED = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "smolvlm"])
@RELAXED
@given(data=st.data())
def test_random_conversations_are_masked_exactly(family: Loader, name: str, data: st.DataObject) -> None:
    messages = data.draw(conversations(SHAPES[name].has_system))
    masked = auto(family(name), messages, None)
    assert violations(masked, family(name), messages, None, expected_turns(name, messages)) == []


@RELAXED
@given(data=st.data())
def test_the_mask_is_the_sum_of_the_masks_of_its_messages(family: Loader, data: st.DataObject) -> None:
    answers = st.builds(
        lambda text, thought: assistant(text, **({"reasoning_content": thought} if thought else {})),
        TEXT,
        st.one_of(st.none(), TEXT),
    )
    calls = st.builds(
        lambda cities: assistant("", tool_calls=[call(city) for city in cities]), st.lists(TEXT, min_size=1, max_size=3)
    )
    results = st.lists(st.builds(lambda text: {"role": "tool", "content": text}, TEXT), min_size=1, max_size=3)
    rounds = st.tuples(st.builds(user, TEXT), st.lists(st.tuples(calls, results), max_size=2), answers)
    messages: Messages = []
    for question, steps, answer in data.draw(st.lists(rounds, min_size=1, max_size=3)):
        messages += [question, *(m for first, rest in steps for m in (first, *rest)), answer]
    name = data.draw(st.sampled_from(["qwen2.5", "qwen3", "glm-4"]))
    tokenizer = family(name)
    whole = auto(tokenizer, messages, TOOLS)
    assert violations(whole, tokenizer, messages, TOOLS, None) == []
    total = [0] * len(whole.token_ids)
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i in indices:
        only = [{**m, "step_loss_mask": int(j == i)} if m["role"] == "assistant" else m for j, m in enumerate(messages)]
        part = auto(tokenizer, only, TOOLS)
        assert part.token_ids == whole.token_ids
        assert sum(part.loss_mask) > 0
        total = [a + b for a, b in zip(total, part.loss_mask, strict=True)]
    assert total == whole.loss_mask
    assert last_turn(tokenizer, messages, TOOLS).loss_mask == part.loss_mask


# ---------------------------------------------------------------------------------------------- negative controls


def message_by_message(tokenizer: Any, messages: Messages, tools: Any) -> MaskedTokens:
    """Planted: every message rendered and tokenised for itself, after a made-up question, and then put together."""
    made_up = [user("made up")]
    prefix = tokenizer.apply_chat_template(made_up, tokenize=False)
    header = len(tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"])
    ids, mask = [], []
    for i, message in enumerate(messages):
        message = {key: value for key, value in message.items() if key != "step_loss_mask"}
        if i == 0:
            text = tokenizer.apply_chat_template([message], tools=tools, tokenize=False)
        else:
            text = tokenizer.apply_chat_template([*made_up, message], tokenize=False).removeprefix(prefix)
        new = tokenizer(text, add_special_tokens=False)["input_ids"]
        is_trained = message["role"] == "assistant"
        ids += new
        mask += [0] * header + [1] * (len(new) - header) if is_trained else [0] * len(new)
    return MaskedTokens(ids, mask)


def one_late(tokenizer: Any, messages: Messages, tools: Any) -> MaskedTokens:
    """Planted: every mask entry stands one token too far right."""
    masked = auto(tokenizer, messages, tools)
    return MaskedTokens(masked.token_ids, [0, *masked.loss_mask[:-1]])


def one_early(tokenizer: Any, messages: Messages, tools: Any) -> MaskedTokens:
    """Planted: every mask entry stands one token too far left."""
    masked = auto(tokenizer, messages, tools)
    return MaskedTokens(masked.token_ids, [*masked.loss_mask[1:], 0])


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_the_checks_catch_tokenising_message_by_message(family: Loader, name: str) -> None:
    masked = message_by_message(family(name), TOOL_TURNS, TOOLS)
    found = violations(masked, family(name), TOOL_TURNS, TOOLS, TOOLS_EXPECTED[name])
    assert "the ids are not those of the whole rendering" in found
    assert any("trained is" in problem for problem in found)


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "smolvlm"])
@pytest.mark.parametrize("planted", [one_late, one_early])
@pytest.mark.parametrize("conversation", ["one turn", "many turns", "emoji and CJK"])
def test_the_checks_catch_a_mask_that_is_off_by_one(
    family: Loader, name: str, planted: Callable[..., MaskedTokens], conversation: str
) -> None:
    messages = CONVERSATIONS[conversation]
    masked = planted(family(name), messages, None)
    assert violations(masked, family(name), messages, None, expected_turns(name, messages)) != []


def _call(city: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}


def _trained(masked: MaskedTokens) -> str:
    return "".join(masked.text[a:b] for (a, b), on in zip(masked.offsets, masked.loss_mask, strict=True) if on)


@pytest.mark.parametrize("name", ["gemma4", "gemma4_v3", "gemma4_v4"])
def test_what_tools_answer_within_a_turn_is_not_trained(any_template: Callable[[str], Any], name: str) -> None:
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [_call("Oslo")]},
        {"role": "tool", "name": "weather", "content": "Rain"},
        {"role": "assistant", "content": "It rains."},
    ]
    masked = auto(any_template(name), messages, None)
    assert masked.text.index("Rain") < masked.text.index(
        "Let me look."
    )  # the template writes the text behind the answer
    calls, said, answer = _trained(masked).partition("Let me look.")
    assert "call:weather{city:" in calls
    assert said
    assert "Rain" not in calls
    assert answer == "<turn|>It rains.<turn|>"
    messages[1]["step_loss_mask"] = 0
    assert _trained(auto(any_template(name), messages, None)) == "It rains.<turn|>"


@pytest.mark.parametrize("reasoning", ["", "Hm."])
def test_a_call_right_behind_another_answer_is_trained_from_its_beginning(family: Loader, reasoning: str) -> None:
    """Qwen3 writes the answer before it otherwise than where that is the last message."""
    messages = [
        user("Weather?"),
        assistant("Let me look."),
        assistant("", tool_calls=[call("Oslo")], **({"reasoning_content": reasoning} if reasoning else {})),
        {"role": "tool", "content": "Rain"},
        assistant("It rains."),
    ]
    said = trained_turns(auto(family("qwen3"), messages, None), family("qwen3"))[1]
    assert said.startswith("<think>\nHm.\n</think>\n\n<tool_call>" if reasoning else "<tool_call>")
    assert said.endswith("</tool_call><|im_end|>")


@pytest.mark.parametrize("name", ["deepseekv3", "gemma4_v5"])
def test_a_call_right_behind_the_answer_of_a_tool_is_trained_whole(
    any_template: Callable[[str], Any], name: str
) -> None:
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [_call("Oslo")]},
        {"role": "tool", "name": "weather", "content": "Rain"},
        {"role": "assistant", "content": "", "tool_calls": [_call("Rome")]},
        {"role": "tool", "name": "weather", "content": "Sun"},
        {"role": "assistant", "content": "Go to Rome."},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Welcome."},
    ]
    if name == "deepseekv3":
        del messages[1]["reasoning_content"]
    trained = _trained(auto(any_template(name), messages, None))
    assert trained.count("weather") == 2
    assert "Rain" not in trained
    assert "Sun" not in trained


@pytest.mark.parametrize("name", ["llama3_1", "gptoss"])
def test_a_text_that_is_dropped_where_it_is_said_first_is_noticed(
    any_template: Callable[[str], Any], name: str
) -> None:
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Sure.", "tool_calls": [_call("Oslo")]},
        {"role": "tool", "name": "weather", "content": "Rain"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "Again?"},
        {"role": "assistant", "content": "Sure."},
    ]
    assert auto(any_template(name), messages, None).lost == [
        "the chat template drops the content of message 2 (assistant): 'Sure.'"
    ]
    del messages[1]["tool_calls"], messages[2]
    assert not auto(any_template(name), messages, None).lost
