"""What a message says, and tool calls with other arguments. Called where renderings are looked at and compared. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from slime_core.data.conversation import REASONING_KEYS, Message, text_of
from slime_core.data.tools import replace_arguments, with_text_arguments


def reasoning_of(message: Message) -> str:
    """Return the reasoning of a message, whatever its key; "" where it has none."""
    return next((message[key] for key in REASONING_KEYS if message.get(key)), "")


def texts(message: Message) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of the texts that a rendering should show, stripped, without empty ones.

    The kind is "content" or "reasoning". Tool calls are not texts.
    """
    given = message.get("content")
    if isinstance(given, list) and message["role"] != "assistant":  # images may stand between the texts
        yield from (("content", part["text"].strip()) for part in given if part.get("text", "").strip())
        given = None
    content = text_of(given)
    reasoning = reasoning_of(message)
    if message["role"] == "assistant" and "</think>" in content:
        thought, _, content = content.rpartition("</think>")
        for part in re.split("</?think>", thought):
            if part.strip():
                yield "reasoning", part.strip()
    if reasoning.strip():
        yield "reasoning", reasoning.strip()
    if content.strip():
        yield "content", content.strip()


def with_arguments(call: dict[str, Any], key: str, value: str) -> dict[str, Any]:
    """Return a tool call with the arguments {key: value}, as an object or JSON text like those before."""
    made = replace_arguments(call, {key: value})
    return with_text_arguments(made) if isinstance(call["function"]["arguments"], str) else made
