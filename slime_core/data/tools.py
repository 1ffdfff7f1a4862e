"""Tool calls and tool definitions in one form, whatever form a row gives them. Pure; called by the reader of conversations."""

from __future__ import annotations

import json
from typing import Any

from slime_core.data.shown import shown
from slime_core.errors import DataError
from slime_core.plain import read_json


def tool_calls(value: Any, number: int) -> list[dict[str, Any]] | None:
    """Return the tool calls of message `number` as `{"type": "function", "function": {"name", "arguments"}}`; None if it
    has none.

    Arguments are an object or text, as they are given; `with_object_arguments` makes objects of JSON text. A null in them is meant, and
    stays.

    Raises:
        DataError: what is wrong; without file and row.
    """
    calls = from_json(value, f"tool_calls of message {number}")
    if calls is None:
        return None
    if not isinstance(calls, list):
        raise DataError(f"message {number} has the tool_calls {shown(value)}; expected a list")
    return [_tool_call(call, number) for call in calls] or None


def replace_arguments(call: dict[str, Any], arguments: Any) -> dict[str, Any]:
    """Return a tool call with these arguments, and all else of it."""
    return {**call, "function": {**call["function"], "arguments": arguments}}


def with_object_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call with the object for arguments that are JSON text of one: most templates write objects as JSON, so that text would
    come out quoted twice."""
    return replace_arguments(call, _object(call["function"]["arguments"]))


def with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call with JSON text for arguments that are an object."""
    arguments = call["function"]["arguments"]
    return replace_arguments(
        call, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    )


def tool_definitions(value: Any) -> list[dict[str, Any]] | None:
    """Return the tool definitions of a row as `{"type": "function", "function": {...}}`; None if there are none.

    Nothing in them is changed, so a `"default": null` reaches the template.

    Raises:
        DataError: what is wrong; without file and row.
    """
    tools = from_json(value, "the tools")
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise DataError(f"the tools are {shown(value)}; expected a list of tool definitions, or it as JSON text")
    read = []
    for item in tools:
        tool = from_json(item, "a tool definition")
        if not isinstance(tool, dict):
            raise DataError(f"a tool definition is {shown(item)}; expected an object")
        is_flat = "name" in tool and tool.get("function") is None
        read.append({"type": "function", "function": tool} if is_flat else tool)
    return read or None


def from_json(value: Any, what: str) -> Any:
    """Return a value that may also be given as JSON text; None for blank text.

    Args:
        what: how messages call it.

    Raises:
        DataError: it is text, and cannot be read as JSON; without file and row.
    """
    if not isinstance(value, str):
        return value
    try:
        return read_json(value) if value.strip() else None
    except DataError as error:
        raise DataError(f"{what}: {shown(value)} is {_no_json(error)}") from error


def _tool_call(value: Any, number: int) -> dict[str, Any]:
    call = from_json(value, f"a tool call of message {number}")
    function = call.get("function") if isinstance(call, dict) and call.get("function") is not None else call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"message {number} has the tool call {shown(call)}; expected an object with name and arguments")
    function = {key: inner for key, inner in function.items() if inner is not None}
    arguments = _arguments(function.get("arguments", {}), number)
    extras = {key: inner for key, inner in call.items() if key != "function" and inner is not None}
    if call.get("function") is None:
        extras = {"id": function.pop("id")} if "id" in function else {}
        function.pop("type", None)
    return {"type": "function", **extras, "function": {**function, "arguments": arguments}}


def _arguments(value: Any, number: int) -> Any:
    """Return the arguments of a call: an object, JSON text of one, or text that is no JSON, such as a program."""
    if isinstance(value, str):
        text = value or "{}"
        try:
            read_json(text)
        except DataError as error:
            if _is_json(text):
                raise DataError(f"the arguments of a tool call of message {number} are {_no_json(error)}") from None
        return text
    if not isinstance(value, dict):
        raise DataError(
            f"the arguments of a tool call of message {number} are {shown(value)}; expected an object, or it as JSON text"
        )
    return value


def _object(arguments: Any) -> Any:
    if isinstance(arguments, str):
        try:
            parsed = read_json(arguments)
        except DataError:  # a program, say
            return arguments
        return parsed if isinstance(parsed, dict) else arguments
    return arguments


def _is_json(text: str) -> bool:
    """Whether text that cannot be read is JSON all the same: too long a number, too deep, or with half a surrogate."""
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        pass
    return True


def _no_json(error: DataError) -> str:
    return f"no valid JSON ({error})"
