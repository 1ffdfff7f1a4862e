"""What a conversation must look like: the one reader of messages and tool definitions. Pure functions.

`chat_messages` checks what any prompt must keep: data sources and converters call it. `chat_row` checks what a
conversation to train on must keep besides, for converters; `read_conversation` checks the same and brings it into the
one form that is rendered, and `prompt_messages` brings prompts into it. So what `slime data convert` accepts can be
previewed and trained. One thing is checked when a mask is made and not before, because prompts of RL may do without:
that the assistant says something.

The messages of errors have no final full stop, but for those of `read_conversation`: whoever adds file and row adds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slime_core.data.flags import FLAG_NAMES, STEP, step_flag
from slime_core.data.shown import shown
from slime_core.data.tools import from_json, tool_calls, tool_definitions
from slime_core.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
OTHER_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Keys of messages and rows that hold what is no text, and that nobody reads."""

_PLAINEST = {"role", "content"}
_REASONING, _MEDIA = frozenset(REASONING_KEYS), frozenset(OTHER_MEDIA)

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """A checked conversation in one form, whatever form its row had.

    Attributes:
        messages: as chat templates expect them: no `step_loss_mask`, content as text or, where there are images, as parts of the
            types text and image; tool calls as `{"type": "function", "function": {"name", "arguments"}}` with the arguments as an object.
        trained: per message, whether it is trained: an assistant message whose `step_loss_mask` is not 0.
        tools: tool definitions in the form `{"type": "function", "function": {...}}`, or None.
    """

    messages: list[Message]
    trained: list[bool]
    tools: list[dict[str, Any]] | None


def chat_messages(value: Any) -> list[Message]:
    """Return the messages of a prompt in the keys that slime reads, so that it does not matter which tool or file format
    they came from.

    Every message is an object with a `role` and with `content`: text, a list of parts, or None beside `tool_calls` or
    reasoning. Flags that keep a message from being trained become `step_loss_mask`; the legacy `function_call` becomes
    `tool_calls`; keys that are None go. Further keys are kept.

    Raises:
        DataError: what is wrong with which message, counted from 1.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"the messages are {shown(value)}, expected a list of at least one message")
    return [_checked(message, number) for number, message in enumerate(value, 1)]


def chat_row(messages: Any, tools: Any = None) -> list[Message]:
    """Return the messages of a row to train on as `chat_messages` does, checked by all rules but the one of masks.

    Roles are those of `ROLES`; a tool call is an object with a name, flat or under `function`, or JSON text of one. Where
    the assistant speaks, all content is text, and what it is to learn is not empty.

    Args:
        tools: a list of objects, each perhaps as JSON text; or JSON text of that list; or None.

    Raises:
        DataError: what is wrong with which message, counted from 1, or with the tools.
    """
    checked = chat_messages(messages)
    speaks = any(message["role"] == "assistant" for message in checked)
    for number, message in enumerate(checked, 1):
        _require_known_role(message, number)
        tool_calls(message.get("tool_calls"), number)
        if speaks:
            _text(message.get("content") or "", number, message["role"])
            _require_something_to_learn(message, number)
    tool_definitions(tools)
    return checked


def read_conversation(messages: Any, tools: Any = None) -> Conversation:
    """Check a conversation to train on and bring it into one form.

    Args:
        messages, tools: what `chat_row` takes.

    Raises:
        DataError: what is wrong with which message, counted from 1, or with the tools; a whole sentence.
    """
    try:
        checked = chat_row(messages, tools)
        _require_assistant(checked)
        read = [_in_one_form(message, number) for number, message in enumerate(checked, 1)]
    except DataError as error:
        raise DataError(f"{error}.") from error
    trained = [message["role"] == "assistant" and message.get(STEP, 1) == 1 for message in checked]
    return Conversation(read, trained, tool_definitions(tools))


def prompt_messages(messages: Any) -> list[Message]:
    """Return the messages of a prompt in the form of `Conversation.messages`. No rule of training holds: a role may be one that only
    the template knows.

    Raises:
        DataError: what is wrong with which message, counted from 1.
    """
    return [_in_one_form(message, number) for number, message in enumerate(chat_messages(messages), 1)]


def _checked(message: Any, number: int) -> Message:
    if not isinstance(message, dict):
        raise DataError(f'message {number} is {shown(message)}, expected an object {{"role": ..., "content": ...}}')
    role = message.get("role")
    if not (isinstance(role, str) and role):
        has = ", ".join(map(str, message)) or "nothing"
        raise DataError(f"message {number} has the role {shown(role)}, expected a text such as 'user'; it has {has}")
    if message.keys() == _PLAINEST and type(message["content"]) is str:
        return dict(message)
    flag = step_flag(message, f"message {number}")
    read = {key: value for key, value in message.items() if value is not None and key not in FLAG_NAMES}
    if "tool_calls" in read or "function_call" in read:
        _read_calls(read, number)
    has_reasoning = not _REASONING.isdisjoint(read) and _has_reasoning(read, number)
    content = read.get("content")
    if content is None and not read.get("tool_calls") and not has_reasoning:
        raise DataError(f"message {number} ({role}) has neither content nor tool_calls")
    if type(content) is not str:
        _require_content(content, number, role)
    for key in OTHER_MEDIA if not _MEDIA.isdisjoint(read) else ():
        if read.get(key):
            raise DataError(f"message {number} has the key {key!r}, which nothing reads: only text can be trained")
    return {"role": role, "content": content, **read, **({} if flag is None else {STEP: flag})}


def _read_calls(message: Message, number: int) -> None:
    """Put the legacy `function_call` in the place of `tool_calls`, and check who calls. In place."""
    role, legacy = message["role"], from_json(message.pop("function_call", None), f"function_call of message {number}")
    calls = from_json(message.get("tool_calls"), f"tool_calls of message {number}")
    if calls is not None and not isinstance(calls, list):
        raise DataError(f"message {number} has the tool_calls {shown(message['tool_calls'])}; expected a list")
    if legacy and calls:
        raise DataError(f"message {number} has both function_call and tool_calls; keep one")
    if legacy is not None and not isinstance(legacy, dict):
        raise DataError(f"message {number} has the function_call {shown(legacy)}; expected an object")
    if legacy:
        message["tool_calls"] = calls = [{"type": "function", "function": legacy}]
    elif calls:
        message["tool_calls"] = calls
    else:
        message.pop("tool_calls", None)
    if calls and role != "assistant":
        raise DataError(f"message {number} ({role}) has tool_calls, but only the assistant calls tools")


def _has_reasoning(message: Message, number: int) -> bool:
    said = {key: message[key] for key in REASONING_KEYS if key in message}
    for key, value in said.items():
        if not isinstance(value, str):
            raise DataError(f"message {number} has the {key} {shown(value)}, expected text")
    texts = {value for value in said.values() if value.strip()}
    if len(texts) > 1:
        raise DataError(f"message {number} has different texts as {' and '.join(said)}; keep one")
    return bool(texts) and message["role"] == "assistant"


def _require_content(content: Any, number: int, role: str) -> None:
    if not (content is None or isinstance(content, (str, list))):
        raise DataError(f"message {number} ({role}) has the content {shown(content)}, expected text")
    for part in content if isinstance(content, list) else ():
        if not (isinstance(part, dict) and isinstance(part.get("type"), str)) or (
            part["type"] == "text" and not isinstance(part.get("text"), str)
        ):
            raise DataError(
                f'message {number} has the part {shown(part)} where text belongs; expected {{"type": "text", "text": ...}}'
            )


def _require_known_role(message: Message, number: int) -> None:
    if message["role"] not in ROLES:
        raise DataError(
            f"message {number} has the unknown role {message['role']!r}; known roles are: {', '.join(ROLES)}. "
            "Other formats become chat rows with `slime data convert`"
        )


def _require_something_to_learn(message: Message, number: int) -> None:
    if message["role"] != "assistant" or message.get(STEP, 1) == 0:
        return
    said = (text_of(message.get("content")), *(message.get(key, "") for key in REASONING_KEYS))
    if not any(text.strip() for text in said) and not tool_calls(message.get("tool_calls"), number):
        raise DataError(
            f"message {number} (assistant) is empty, so that only its end would be learned; "
            f'take it out, or keep it from being trained with "{STEP}": 0'
        )


def _require_assistant(messages: list[Message]) -> None:
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"no message is of the assistant, so nothing can be trained; the roles are: {roles}")


def _in_one_form(message: Message, number: int) -> Message:
    read = dict(message)
    read.pop(STEP, None)
    calls = tool_calls(read.pop("tool_calls", None), number)
    if calls:
        read["tool_calls"] = calls
    content = read.get("content") or ""
    text = _text(content, number, message["role"])
    read["content"] = _plain_parts(content) if has_images(message) else text
    return read


def has_images(message: Message) -> bool:
    """Whether a message has places for images among the parts of its content."""
    content = message.get("content")
    return isinstance(content, list) and any(part["type"] == "image" for part in content)


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """Return the text of a message's content, without images."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    return content or ""


def _plain_parts(content: Any) -> list[dict[str, str]]:
    return [{"type": "image"} if p["type"] == "image" else {"type": "text", "text": p["text"]} for p in content]


def _text(content: str | list[Any], number: int, role: str) -> str:
    kinds = ("text",) if role == "assistant" else ("text", "image")
    for part in content if isinstance(content, list) else ():
        if part["type"] not in kinds:
            raise DataError(
                f"message {number} has the part {shown(part)}; only parts of the type {' and '.join(kinds)} are supported "
                f"in a message of the role {role}"
            )
    return text_of(content)
