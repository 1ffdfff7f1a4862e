"""From messages or text to the token ids that the model reads, as training and evaluation read them."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any, cast

from slime_core.data.conversation import ROLES, Message, chat_messages
from slime_core.data.flags import STEP
from slime_core.data.tools import tool_calls, tool_definitions
from slime_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTING_ROLES = ("system", "developer")
"""Roles that some templates leave out without a word."""


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a model was made for conversations."""
    return bool(getattr(tokenizer, "chat_template", None))


def conversation_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Any, tools: Any = None, variables: dict[str, Any] | None = None
) -> list[int]:
    """The token ids of a conversation up to where the model's next answer begins.

    Args:
        messages: as `chat_messages` takes them; content is text, or a list of parts of text.
        tools: definitions of tools, or None.
        variables: that the chat template is given besides.

    Raises:
        DataError: what is wrong with which message, or what the chat template has against it.
    """
    read = [_in_one_form(message, number) for number, message in enumerate(chat_messages(messages), 1)]
    if not has_chat_template(tokenizer):
        raise DataError("the model has no chat template, so that it cannot read messages; it completes plain text")
    definitions: Any = tool_definitions(tools)
    taken = signature(tokenizer.apply_chat_template).parameters
    if own := sorted(variables.keys() & taken.keys() if variables else ()):
        raise DataError(f"{own[0]!r} is no variable of a chat template, but decides how it is rendered")
    try:
        text: Any = tokenizer.apply_chat_template(
            read, tools=definitions, add_generation_prompt=True, tokenize=False, **(variables or {})
        )
    except Exception as error:  # a template is a program, which may fail in any way at what it did not expect
        raise DataError(f"the chat template cannot render the messages: {type(error).__name__}: {error}") from None
    for number, message in enumerate(read, 1):
        if message["role"] in SETTING_ROLES and message["content"].strip() not in text:
            raise DataError(f"the chat template leaves out message {number} ({message['role']})")
    return plain_tokens(tokenizer, text)


def plain_tokens(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False) -> list[int]:
    """The token ids of a text.

    Args:
        special: put the tokenizer's special tokens around it, such as one for the beginning of a text.
    """
    return cast("list[int]", tokenizer(text, add_special_tokens=special)["input_ids"])


def _in_one_form(message: Message, number: int) -> Message:
    read = {key: value for key, value in message.items() if key != STEP}
    if read["role"] not in ROLES:
        raise DataError(f"message {number} has the unknown role {read['role']!r}; known roles are: {', '.join(ROLES)}")
    if calls := tool_calls(read.pop("tool_calls", None), number):
        read["tool_calls"] = calls
    content = read["content"] or ""
    for part in content if isinstance(content, list) else ():
        if part["type"] != "text":
            raise DataError(f"message {number} has a part of the type {part['type']!r}; only text is supported")
    read["content"] = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return read
