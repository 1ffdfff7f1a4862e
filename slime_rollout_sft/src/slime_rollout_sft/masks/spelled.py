"""Text of messages that spells a special token. Called by the loss-mask generators.

A rendering is tokenised whole, so such text becomes the token: an answer that explains `<|im_end|>` teaches the model to end
its turn in mid-sentence, and a user can write a turn of the assistant. Nobody can tell whether it is meant, so it is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from slime_core.data.conversation import Conversation, Message
from slime_rollout_sft.masks.messages import reasoning_of
from slime_rollout_sft.masks.template import Template


def spelled_special_tokens(template: Template, conversation: Conversation) -> list[str]:
    """Return a sentence for each message whose text spells special tokens of the tokenizer."""
    if getattr(template.tokenizer, "split_special_tokens", False):
        return []
    warnings = []
    for number, message in enumerate(conversation.messages, 1):
        if found := _found(template, _texts(message)):
            warnings.append(_sentence(f"message {number} ({message['role']})", found))
    if conversation.tools and (found := _found(template, [json.dumps(conversation.tools, ensure_ascii=False)])):
        warnings.append(_sentence("the definition of a tool", found))
    return warnings


def _found(template: Template, texts: Iterator[str] | list[str]) -> list[str]:
    return sorted({match[0] for text in texts for match in template.special.finditer(text)})


def _texts(message: Message) -> Iterator[str]:
    yield message["content"]
    yield reasoning_of(message)
    yield str(message.get("name") or "")
    if "tool_calls" in message:
        yield json.dumps(message["tool_calls"], ensure_ascii=False)


def _sentence(who: str, found: list[str]) -> str:
    return f"{who} has text that spells {', '.join(map(repr, found))}: it becomes the special token"
