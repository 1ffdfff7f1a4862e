"""Text of messages that spells a special token. Called by the loss-mask generators and by the preview of prompts.

A rendering is tokenised whole, so such text becomes the token: an answer that explains `<|im_end|>` teaches the model to end
its turn in mid-sentence, and a user can write a turn of the assistant. Nobody can tell whether it is meant, so it is said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from slime_core.data.chat_template import special_tokens
from slime_core.data.conversation import Message
from slime_core.data.message_texts import reasoning_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def special_tokens_in(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: list[dict[str, Any]] | None
) -> list[str]:
    """Return a sentence for each message whose text spells special tokens of the tokenizer, and one for the tools."""
    if getattr(tokenizer, "split_special_tokens", False):
        return []
    pattern, warnings = special_tokens(tokenizer), []
    for number, message in enumerate(messages, 1):
        if found := _found(pattern, _texts(message)):
            warnings.append(_sentence(f"message {number} ({message['role']})", found))
    if tools and (found := _found(pattern, [json.dumps(tools, ensure_ascii=False)])):
        warnings.append(_sentence("the definition of a tool", found))
    return warnings


def _found(pattern: re.Pattern[str], texts: Iterable[str]) -> list[str]:
    return sorted({match[0] for text in texts for match in pattern.finditer(text)})


def _texts(message: Message) -> Iterator[str]:
    content = message.get("content") or ""
    yield content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    yield reasoning_of(message)
    yield str(message.get("name") or "")
    if "tool_calls" in message:
        yield json.dumps(message["tool_calls"], ensure_ascii=False)


def _sentence(who: str, found: list[str]) -> str:
    return f"{who} has text that spells {', '.join(map(repr, found))}: it becomes the special token"
