"""Masks found without marks agree with the marks that TRL puts into its training templates, but for listed reasons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from slime_rollout_sft.masks.generators import auto
from slime_rollout_sft.masks.tokens import tokens_between

CONVERSATIONS = {
    "one turn": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello there!"}],
    "two turns": [
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "And 2+2?"},
        {"role": "assistant", "content": "It is 4. 😀你好"},
    ],
}


class Difference(NamedTuple):
    """What TRL's marks train in every turn, and at the end of the conversation, beyond what is trained here."""

    why: str
    turn: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    other_text: tuple[str, ...] = ()


SAME = Difference("same")
LINE_END = Difference("trains the line end after the token at which the model stops", turn=("\n",))
HEADER = Difference("trains the header, which the generation prompt gives to the model", turn=("<｜Assistant｜>",))
CHANNEL = Difference(
    "trains the header, which the generation prompt gives to the model", turn=("<|start|>", "assistant")
)
THINK = Difference(
    "trains <think>, which the generation prompt gives to the model, and the line end", turn=("<think>", "\n")
)
THINK_LINES = THINK._replace(
    why="trains <think> and a line end that the generation prompt gives to the model, and the line end after the turn",
    turn=("<think>", "\n\n", "\n"),
)
DIFFERENCES = {
    "cohere": SAME,
    "cohere2": SAME,
    "llama3": SAME,
    "llava_next": SAME,
    "diffusion_gemma": LINE_END,
    "gemma": LINE_END,
    "gemma3": LINE_END,
    "idefics3": LINE_END,
    "lfm2": LINE_END,
    "lfm2_v2": LINE_END,
    "smolvlm": LINE_END,
    "qwen2_5_vl": LINE_END,
    "qwen3_instruct_2507": LINE_END,
    "qwen3_vl": LINE_END,
    "qwen2_5": Difference(
        "trains the line ends of the header and after the token at which the model stops", turn=("\n", "\n")
    ),
    "qwen3": LINE_END._replace(
        why="also shows, and so trains, the empty think block in earlier turns", other_text=("two turns",)
    ),
    "qwen3_5_nothink": Difference(
        "trains the empty think block, which the generation prompt gives to the model, and shows it in earlier turns",
        turn=("<think>", "\n\n", "</think>", "\n\n", "\n"),
        other_text=("two turns",),
    ),
    "qwen3_5_think": THINK_LINES._replace(other_text=("two turns",)),
    "qwen3_6": THINK_LINES._replace(other_text=("two turns",)),
    "qwen3_8": THINK_LINES,
    "nemotron_3_nano": THINK,
    "nemotron_3_super": THINK,
    "nemotron_3_ultra": THINK,
    "nemotron_3_5_lightning": THINK,
    "deepseek_r1_distill": HEADER,
    "deepseekv3": HEADER,
    "gptoss": CHANNEL,
    "muse_glimmer": CHANNEL,
    "phi3": Difference("trains line ends, and the token after the last turn", turn=("\n",), end=("<EOS>",)),
    "phi3_5": Difference("trains line ends, and the token after the last turn", turn=("\n",), end=("<EOS>",)),
    "glm4moe": Difference(
        "writes <|user|> after the last turn, which no template of GLM does", other_text=tuple(CONVERSATIONS)
    ),
}


def test_every_training_template_is_compared(assets: Callable[[str], Any]) -> None:
    marked = {path.stem.removesuffix("_training") for path in assets("templates").glob("*_training.jinja")}
    assert marked == set(DIFFERENCES)


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_masks_agree_with_marked_templates(any_template: Callable[[str], Any], name: str, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    ours = auto(any_template(name), messages, None)
    tokenizer = any_template(f"{name}_training")
    theirs = auto(tokenizer, messages, None)
    expected = DIFFERENCES[name]
    assert (ours.text != theirs.text) == (conversation in expected.other_text)
    if ours.text != theirs.text:
        return
    only_theirs = [
        tokenizer.decode([token])
        for token, a, b in zip(ours.token_ids, ours.loss_mask, theirs.loss_mask, strict=True)
        if b and not a
    ]
    assert only_theirs == [*expected.turn * (len(messages) // 2), *expected.end]
    assert not any(a and not b for a, b in zip(ours.loss_mask, theirs.loss_mask, strict=True))


@pytest.mark.parametrize("name", DIFFERENCES)
def test_marks_in_a_template_are_followed_as_transformers_follows_them(
    any_template: Callable[[str], Any], name: str
) -> None:
    tokenizer = any_template(f"{name}_training")
    messages = CONVERSATIONS["two turns"]
    if name in ("idefics3", "smolvlm", "llava_next"):  # these want content in parts
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    theirs = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ours = auto(tokenizer, CONVERSATIONS["two turns"], None)
    assert ours.token_ids == theirs["input_ids"]
    assert ours.loss_mask == theirs["assistant_masks"]


def test_a_marked_turn_can_be_left_out(any_template: Callable[[str], Any]) -> None:
    tokenizer = any_template("qwen3_training")
    messages = CONVERSATIONS["two turns"]
    masked = auto(tokenizer, [messages[0], {**messages[1], "step_loss_mask": 0}, *messages[2:]], None)
    start = masked.text.index("<think>", masked.text.index("2+2"))
    assert [i for i, trained in enumerate(masked.loss_mask) if trained] == list(
        tokens_between(masked.offsets, start, len(masked.text))
    )


def test_a_message_with_several_marked_parts_is_left_out_whole(any_template: Callable[[str], Any]) -> None:
    tokenizer = any_template("qwen3_training")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %} - {% generation %}done{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    )
    messages = CONVERSATIONS["two turns"]
    whole = auto(tokenizer, messages, None)
    part = auto(tokenizer, [messages[0], {**messages[1], "step_loss_mask": 0}, *messages[2:]], None)
    boundary = tokens_between(whole.offsets, 0, whole.text.index("2+2"))
    assert 1 in [whole.loss_mask[i] for i in boundary]
    assert part.loss_mask == [0 if i in boundary else trained for i, trained in enumerate(whole.loss_mask)]
