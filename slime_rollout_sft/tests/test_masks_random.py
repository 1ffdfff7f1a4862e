"""Random conversations, over all families of templates: nothing outside the assistant's turns is trained unless a warning says
so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slime_core.data.chat_template import Template
from slime_core.errors import DataError
from slime_rollout_sft.masks.generators import auto
from slime_rollout_sft.masks.roles import roles_in_text

Loader = Callable[[str], Any]

WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=6)


@pytest.mark.parametrize("marks", ["", "_training"])
@pytest.mark.parametrize(
    "name", ["qwen3", "qwen2_5", "llama3", "gemma3", "phi3", "gptoss", "cohere2", "deepseekv3", "lfm2"]
)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS, min_size=2, max_size=8), off=st.integers(0, 3))
def test_nothing_outside_the_assistants_turns_is_trained_unless_a_warning_says_so(
    any_template: Loader, name: str, marks: str, words: list[str], off: int
) -> None:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": f"{'UA'[i % 2]}{i}{word}{'VB'[i % 2]}"}
        for i, word in enumerate(words[: len(words) // 2 * 2])
    ]
    messages[1] |= {"step_loss_mask": 0} if off == 0 and len(messages) > 2 else {}
    masked = auto(any_template(name + marks), messages, None)
    if masked.warnings:
        return
    trained = "".join(
        masked.text[a:b] if on else "\0" for (a, b), on in zip(masked.offsets, masked.loss_mask, strict=True)
    )
    runs = [run for run in trained.split("\0") if run]
    answers = [m["content"] for m in messages if m["role"] == "assistant" and m.get("step_loss_mask", 1)]
    assert len(runs) == len(answers)
    for run, answer in zip(runs, answers, strict=True):
        before, found, end = run.partition(answer)
        assert found
        assert not re.search("user|assistant|model", before)  # no header
        assert re.fullmatch(r"(<[^<>\s]+>)+", end)  # special tokens alone, at which the model stops


FAMILIES = [
    *("cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "gemma4", "glm4moe", "gptoss"),
    *(
        "idefics3",
        "lfm2",
        "lfm2_2_5",
        "llama3",
        "llama3_1",
        "llama3_2",
        "llava_next",
        "nemotron_3_nano",
        "phi3",
        "phi3_5",
    ),
    *("qwen2_5", "qwen2_5_vl", "qwen3", "qwen3_5_think", "qwen3_instruct_2507", "qwen3_vl", "smolvlm"),
    *("deepseekv3_training", "glm4moe_training", "gptoss_training", "llama3_training", "qwen3_training"),
]
SAYS_SO = re.compile(
    "is trained|also train|no token ends|has text that spells|does not write its own generation prompt"
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rounds of question, calls with results, and answer; some with reasoning, some not to be trained.

    Each text starts with a letter for its role and its number, and ends with a mark: no text is within another one.
    """
    number = iter(range(100))

    def text(role: str) -> str:
        return f"{role}{next(number)}{draw(WORDS)}Z"

    messages: list[dict[str, Any]] = [{"role": "system", "content": text("S")}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": text("U")})
        for _ in range(draw(st.integers(0, 1))):
            arguments: Any = {"city": text("C")}
            if draw(st.booleans()):
                arguments = json.dumps(arguments, separators=(",", ":"))
            function = {"name": "weather", "arguments": arguments}
            messages.append(
                {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
            )
            messages.append({"role": "tool", "name": "weather", "content": text("T")})
        answer = {"role": "assistant", "content": text("A")}
        answer |= {"reasoning_content": text("R")} if draw(st.booleans()) else {}
        messages.append(answer | draw(st.sampled_from([{}, {"step_loss_mask": 0}])))
    return messages


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=conversations())
def test_of_every_family_only_what_the_assistant_says_is_trained_unless_a_warning_says_so(
    any_template: Loader, name: str, messages: list[dict[str, Any]]
) -> None:
    tokenizer = any_template(name)
    try:
        masked = auto(tokenizer, messages, None)
    except DataError:  # many templates know no tools or no system message
        return
    if any(SAYS_SO.search(warning) for warning in masked.warnings):
        return
    roles = roles_in_text(Template(tokenizer, None), masked.messages, masked.text, masked.offsets)
    trained = {role for role, on in zip(roles, masked.loss_mask, strict=True) if on}
    assert trained <= {"assistant"}
    said = "".join(masked.text[a:b] for (a, b), on in zip(masked.offsets, masked.loss_mask, strict=True) if on)
    for message in messages:
        if message["role"] != "assistant" or message.get("step_loss_mask") == 0:
            assert not message["content"] or message["content"] not in said
