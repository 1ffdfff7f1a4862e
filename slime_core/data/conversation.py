"""What a conversation must look like: the one reader of messages and tool definitions. Pure functions.

`chat_messages` checks what any prompt must keep, and leaves it as it is, since the chat template decides what it means:
data sources and converters call it. `chat_row` checks what a conversation to train on must keep besides, for
converters; `read_conversation` checks the same and brings it into the one form that loss masks are made from. So what
`slime data convert` accepts can be previewed and trained. Two things are checked when a mask is made and not before,
because prompts of RL may do without: that the assistant says something, and that all content is text.

The messages of errors have no final full stop, but for those of `read_conversation`: whoever adds file and row adds it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from slime_core.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """A checked conversation in one form, whatever form its row had.

    Attributes:
        messages: as chat templates expect them: no None values, no `step_loss_mask`, content as text, tool calls as
            `{"type": "function", "function": {"name", "arguments"}}` with the arguments as an object.
        trained: per message, whether it is trained: an assistant message whose `step_loss_mask` is not 0.
        tools: tool definitions in the form `{"type": "function", "function": {...}}`, or None.
    """

    messages: list[Message]
    trained: list[bool]
    tools: list[dict[str, Any]] | None


def chat_messages(value: Any) -> list[Message]:
    """Return the messages of a prompt without keys that are None, so that it does not matter which file format they
    came from.

    Every message is an object with a `role` and with `content`: text, a list of parts, or None beside `tool_calls`.
    Further keys are kept.

    Raises:
        DataError: what is wrong with which message, counted from 1.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"the messages are {shown(value)}, expected a list of at least one message")
    return [_checked(message, number) for number, message in enumerate(value, 1)]


def chat_row(messages: Any, tools: Any = None) -> list[Message]:
    """Return the messages of a row to train on as `chat_messages` does, checked by all rules but the two of masks.

    Roles are those of `ROLES`; a tool call is an object with a name, flat or under `function`, or JSON text of one;
    `step_loss_mask` is 0 or 1.

    Args:
        tools: a list of objects, each perhaps as JSON text; or JSON text of that list; or None.

    Raises:
        DataError: what is wrong with which message, counted from 1, or with the tools.
    """
    checked = chat_messages(messages)
    for number, message in enumerate(checked, 1):
        _require_known_role(message, number)
        _require_known_step(message, number)
        _tool_calls(message.get("tool_calls"), number)
    _tools(tools)
    return checked


def read_conversation(messages: Any, tools: Any = None) -> Conversation:
    """Check a conversation to train on and bring it into one form.

    Args:
        messages, tools: what `chat_row` takes; parts of a content must be text.

    Raises:
        DataError: what is wrong with which message, counted from 1, or with the tools; a whole sentence.
    """
    try:
        checked = chat_row(messages, tools)
        _require_assistant(checked)
        read = [_in_one_form(message, number) for number, message in enumerate(checked, 1)]
    except DataError as error:
        raise DataError(f"{error}.") from error
    trained = [message["role"] == "assistant" and message.get("step_loss_mask", 1) == 1 for message in checked]
    return Conversation(read, trained, _tools(tools))


def shown(value: Any) -> str:
    """Return a value as messages show it: JSON, cut off where it is long."""
    if value is None:
        return "null"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _checked(message: Any, number: int) -> Message:
    if not isinstance(message, dict):
        raise DataError(f'message {number} is {shown(message)}, expected an object {{"role": ..., "content": ...}}')
    role, content = message.get("role"), message.get("content")
    if not (isinstance(role, str) and role):
        has = ", ".join(map(str, message)) or "nothing"
        raise DataError(f"message {number} has the role {shown(role)}, expected a text such as 'user'; it has {has}")
    if content is None and not message.get("tool_calls"):
        raise DataError(f"message {number} ({role}) has neither content nor tool_calls")
    if not (content is None or isinstance(content, (str, list))):
        raise DataError(f"message {number} ({role}) has the content {shown(content)}, expected text")
    return {"role": role, "content": content, **{k: v for k, v in message.items() if v is not None}}


def _require_known_role(message: Message, number: int) -> None:
    if message["role"] not in ROLES:
        raise DataError(
            f"message {number} has the unknown role {message['role']!r}; known roles are: {', '.join(ROLES)}. "
            "Other formats become chat rows with `slime data convert`"
        )


def _require_known_step(message: Message, number: int) -> None:
    step = message.get("step_loss_mask", 1)
    if step not in (0, 1):
        raise DataError(f"message {number} has step_loss_mask {shown(step)}; expected 0 (not trained) or 1")


def _require_assistant(messages: list[Message]) -> None:
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"no message is of the assistant, so nothing can be trained; the roles are: {roles}")


def _in_one_form(message: Message, number: int) -> Message:
    read: Message = _without_none(message)
    read.pop("step_loss_mask", None)
    calls = _tool_calls(read.pop("tool_calls", None), number)
    if calls is not None:
        read["tool_calls"] = calls
    read["content"] = _text(read.get("content", ""), number)
    return read


def _text(content: str | list[Any], number: int) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise DataError(f"message {number} has the part {shown(part)}; only parts of the type text are supported")
    return "".join(part["text"] for part in content)


def _tool_calls(value: Any, number: int) -> list[dict[str, Any]] | None:
    """Return the tool calls of a message in one form; None if it has none."""
    calls = _from_json(value, f"tool_calls of message {number}") if value else None
    if calls is None:
        return None
    if not isinstance(calls, list):
        raise DataError(f"message {number} has the tool_calls {shown(value)}; expected a list")
    return [_tool_call(call, number) for call in calls]


def _tool_call(value: Any, number: int) -> dict[str, Any]:
    call = _from_json(_without_none(value), f"a tool call of message {number}")
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"message {number} has the tool call {shown(call)}; expected an object with name and arguments")
    function = dict(function)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        # Most templates write arguments as JSON themselves, so JSON text would come out quoted twice.
        try:
            parsed = json.loads(arguments or "{}")
            arguments = parsed if isinstance(parsed, dict) else arguments
        except (ValueError, RecursionError):
            pass
    extras = {key: value for key, value in call.items() if key != "function"} if "function" in call else {}
    if "function" not in call:
        extras = {"id": function.pop("id")} if "id" in function else {}
        function.pop("type", None)
    return {"type": "function", **extras, "function": {**function, "arguments": arguments}}


def _tools(value: Any) -> list[dict[str, Any]] | None:
    """Return the tool definitions of a row in one form; None if there are none."""
    tools = _from_json(_without_none(value), "the tools")
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise DataError(f"the tools are {shown(value)}; expected a list of tool definitions, or it as JSON text")
    read = []
    for item in tools:
        tool = _from_json(item, "a tool definition")
        if not isinstance(tool, dict):
            raise DataError(f"a tool definition is {shown(item)}; expected an object")
        read.append(tool if "name" not in tool or "function" in tool else {"type": "function", "function": tool})
    return read or None


def _from_json(value: Any, what: str) -> Any:
    """Return a value that may also be given as JSON text; None for blank text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what}: {shown(value)} is no valid JSON ({error})") from error


def _without_none(value: Any) -> Any:
    """Return a copy without None values in objects: Arrow files give every object all keys that any row has."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
