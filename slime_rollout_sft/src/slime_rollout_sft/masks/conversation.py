"""Reads what data files hold as a conversation: checks it, brings it into one form, says which messages are trained.

Called by the loss-mask generators. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from slime_core.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """A checked conversation.

    Attributes:
        messages: as chat templates expect them: no None values, no `step_loss_mask`, content as text, tool calls as
            `{"type": "function", "function": {"name", "arguments"}}` with the arguments as an object.
        trained: per message, whether it is trained: an assistant message whose `step_loss_mask` is not 0.
        tools: tool definitions in the form `{"type": "function", "function": {...}}`, or None.
    """

    messages: list[Message]
    trained: list[bool]
    tools: list[dict[str, Any]] | None


def read_conversation(messages: Any, tools: Any = None) -> Conversation:
    """Check and normalise.

    Args:
        messages: list of messages. Content may be text or a list of `{"type": "text"}` parts; tool calls may be flat
            or nested, their arguments an object or JSON text.
        tools: None, a list of definitions (objects or JSON text), or such a list as JSON text.

    Raises:
        DataError: what is wrong with which message, counted from 1.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(f"the messages are {_shown(messages)}; expected a list of at least one message.")
    read, trained = [], []
    for number, raw in enumerate(messages, 1):
        message = _message(raw, number)
        step = message.pop("step_loss_mask", 1)
        if step not in (0, 1):
            raise DataError(f"message {number} has step_loss_mask {_shown(step)}; expected 0 (not trained) or 1.")
        read.append(message)
        trained.append(message["role"] == "assistant" and step == 1)
    if not any(message["role"] == "assistant" for message in read):
        roles = ", ".join(message["role"] for message in read)
        raise DataError(f"no message is of the assistant, so nothing can be trained; the roles are: {roles}.")
    return Conversation(read, trained, _tools(tools))


def texts(message: Message) -> Iterator[tuple[str, str]]:
    """(what it is, text) of the texts that a rendering should show, stripped, without empty ones.

    What it is: "content" or "reasoning". Tool calls are not texts.
    """
    content = message.get("content") or ""
    reasoning = next((message[key] for key in REASONING_KEYS if isinstance(message.get(key), str)), "")
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
    """A tool call with other arguments, an object or JSON text as before."""
    arguments: Any = {key: value}
    if isinstance(call["function"]["arguments"], str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _message(raw: Any, number: int) -> Message:
    if not isinstance(raw, dict):
        raise DataError(f"message {number} is {_shown(raw)}; expected an object with role and content.")
    message: Message = _without_none(raw)
    role = message.get("role")
    if role is None:
        raise DataError(f"message {number} has no role; its keys are: {', '.join(map(str, raw)) or 'none'}.")
    if role not in ROLES:
        raise DataError(
            f"message {number} has the unknown role {_shown(role)}; known roles are: {', '.join(ROLES)}. "
            "Other formats become chat rows with `slime data convert`."
        )
    calls = message.pop("tool_calls", None)
    if calls:
        message["tool_calls"] = [_tool_call(call, number) for call in _parsed(calls, f"tool_calls of message {number}")]
    if "content" not in message and "tool_calls" not in message and not any(k in message for k in REASONING_KEYS):
        raise DataError(f"message {number} ({role}) has neither content nor tool_calls; give it one of them.")
    message["content"] = _content(message.get("content", ""), number)
    return message


def _content(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"the content of message {number} is {_shown(content)}; expected text.")
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise DataError(f"message {number} has the part {_shown(part)}; only parts of the type text are supported.")
    return "".join(part["text"] for part in content)


def _tool_call(call: Any, number: int) -> dict[str, Any]:
    call = _parsed(call, f"a tool call of message {number}")
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(
            f"message {number} has the tool call {_shown(call)}; expected an object with name and arguments."
        )
    function = dict(function)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        # Most templates write arguments as JSON themselves, so JSON text would come out quoted twice.
        try:
            parsed = json.loads(arguments or "{}")
            arguments = parsed if isinstance(parsed, dict) else arguments
        except json.JSONDecodeError:
            pass
    extras = {key: value for key, value in call.items() if key != "function"} if "function" in call else {}
    if "function" not in call:
        extras = {"id": function.pop("id")} if "id" in function else {}
        function.pop("type", None)
    return {"type": "function", **extras, "function": {**function, "arguments": arguments}}


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    read = _parsed(_without_none(tools), "the tools")
    if not read:
        return None
    if not isinstance(read, list):
        raise DataError(f"the tools are {_shown(tools)}; expected a list of tool definitions, or it as JSON text.")
    result = []
    for item in read:
        tool = _parsed(item, "a tool definition")
        if not isinstance(tool, dict):
            raise DataError(f"a tool definition is {_shown(item)}; expected an object.")
        result.append(tool if "name" not in tool or "function" in tool else {"type": "function", "function": tool})
    return result


def _parsed(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except json.JSONDecodeError as error:
        raise DataError(f"{what}: {_shown(value)} is no valid JSON ({error}).") from error


def _without_none(value: Any) -> Any:
    """Arrow files give every object all keys that any row has, with None where there is nothing."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
