"""Converters: one row of somebody's format in, one chat row out. Pure functions behind `slime data convert`.

A chat row is `{"messages": [...]}`, with `tools`, `label` and `metadata` where the source has them. A row that does not
fit raises `DataError` with the reason; the caller adds file and row.
"""

from __future__ import annotations

from typing import Any

from slime_core.data import chat_messages
from slime_core.data.conversation import REASONING_KEYS
from slime_core.data.flags import FLAGS, STEP, step_flag
from slime_core.data.shown import shown
from slime_core.data.tools import from_json, tool_definitions
from slime_core.errors import DataError

Row = dict[str, Any]

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}


def openhermes(row: Row) -> Row:
    """OpenHermes and ShareGPT: `conversations` of `{"from", "value"}`, optionally `system` and `tools`.

    A `function_call` becomes `tool_calls` of an assistant message, together with what the assistant says or calls right
    before it: nobody answers in between, so it is one turn. A turn's `weight` of 0 or 1 becomes `step_loss_mask`, as do
    the flags of other tools; its further keys are kept. The `system` field counts when the conversation has no system turn
    of its own.
    """
    messages: list[Row] = []
    for number, turn in enumerate(_field(row, "conversations", list), 1):
        message = _sharegpt_turn(turn, number)
        if not (messages and _joined(messages[-1], message, number)):
            messages.append(message)
    system = _text(row, "system")
    if system and not any(message["role"] == "system" for message in messages):
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages, "tools": tool_definitions(row.get("tools"))}


def alpaca(row: Row) -> Row:
    """Alpaca: `instruction`, `input` and `output`, optionally `system` and `history` (pairs of question and answer)."""
    question = _field(row, "instruction", str)
    if extra := _text(row, "input"):
        question = f"{question}\n{extra}"
    system, history = _text(row, "system"), row.get("history")
    messages = [{"role": "system", "content": system}] if system else []
    for pair in history if isinstance(history, list) else [history] if history is not None else []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise DataError(f"'history' holds {shown(pair)}, expected pairs of question and answer")
        messages += _exchange(pair[0], pair[1])
    return {"messages": [*messages, *_exchange(question, _field(row, "output", str))]}


def gsm8k(row: Row) -> Row:
    """GSM8K: `question`, and `answer` with the solution and a last line `#### number`, which becomes the label."""
    answer = _field(row, "answer", str)
    return {"messages": _exchange(_field(row, "question", str), answer), "label": _gsm8k_label(answer)}


def gsm8k_multiturn(row: Row) -> Row:
    """GSM8K's socratic version, whose answer has lines `sub-question ** step`: each becomes an exchange.

    The first user turn holds the problem and its first sub-question; the last answer keeps the line `#### number`.
    """
    answer = _field(row, "answer", str)
    label = _gsm8k_label(answer)
    *lines, last = [line for line in answer.splitlines() if line.strip()]
    steps = [line.split(" ** ", 1) for line in lines]
    if not steps or any(len(step) != 2 for step in steps):
        raise DataError(
            "'answer' is not made of lines `sub-question ** step`; multi-turn needs GSM8K's socratic version, "
            "convert the main version with gsm8k"
        )
    steps[0][0] = f"{_field(row, 'question', str)}\n{steps[0][0]}"
    steps[-1][1] = f"{steps[-1][1]}\n{last}"
    return {"messages": [message for step in steps for message in _exchange(*step)], "label": label}


def verl(row: Row) -> Row:
    """verl: `prompt` (messages or text) with `response`, or with `reward_model.ground_truth`, which becomes the label.

    Only the response is trained: answers in the prompt are given, and get a `step_loss_mask` of 0. `data_source`, `ability`
    and `extra_info` go into the metadata.
    """
    prompt = row.get("prompt")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _field(row, "prompt", list)
    response, judge = row.get("response"), row.get("reward_model")
    label = judge.get("ground_truth") if isinstance(judge, dict) else None
    if response is None and label is None:
        raise DataError(
            "the row has neither 'response' (to learn from) nor 'reward_model.ground_truth' (to compare with)"
        )
    if response is not None:
        messages = [_given(message) for message in messages]
        messages.append({"role": "assistant", "content": _field(row, "response", str)})
    metadata = {key: row[key] for key in ("data_source", "ability", "extra_info") if row.get(key) is not None}
    return {"messages": messages, "label": label, "metadata": metadata or None}


def messages(row: Row) -> Row:
    """Rows that have `messages` already: checked, other columns kept."""
    return {**row, "messages": chat_messages(_field(row, "messages", list))}


def _sharegpt_turn(turn: Any, number: int) -> Row:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise DataError(f"turn {number} of 'conversations' is {shown(turn)}, expected {{'from', 'value'}} with text")
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        raise DataError(f"turn {number} is from {speaker!r}; expected one of {', '.join(_SHAREGPT_ROLES)}")
    message: Row = {"role": _SHAREGPT_ROLES[speaker], "content": turn["value"]}
    if speaker == "function_call":
        message = {"role": "assistant", "content": None, "tool_calls": _tool_calls(turn["value"], number)}
    further = {key: value for key, value in turn.items() if key not in ("from", "value", *FLAGS) and value is not None}
    flag = step_flag(turn, f"turn {number}")
    return {**further, **message, **({} if flag is None else {STEP: flag})}


def _joined(before: Row, message: Row, number: int) -> bool:
    """Add the calls of a message to the assistant's message right before it, in place. False where they are two turns."""
    if not (before["role"] == message["role"] == "assistant" and "tool_calls" in message):
        return False
    if before.get(STEP) != message.get(STEP):
        raise DataError(
            f"turns {number - 1} and {number} are one turn of the assistant, but not both are to be trained"
        )
    if any(key in before and before[key] != message[key] for key in REASONING_KEYS if key in message):
        raise DataError(
            f"turns {number - 1} and {number} are one turn of the assistant, but each has its own reasoning; keep one"
        )
    calls = [*before.get("tool_calls", []), *message["tool_calls"]]
    before.update({key: value for key, value in message.items() if key not in before}, tool_calls=calls)
    return True


def _given(message: Any) -> Any:
    """Return a message of a prompt, kept from being trained if it is the assistant's."""
    if not (isinstance(message, dict) and message.get("role") == "assistant"):
        return message
    step_flag(message, "a message of 'prompt'")
    return {**{key: value for key, value in message.items() if key not in FLAGS}, STEP: 0}


def _tool_calls(text: str, number: int) -> list[Row]:
    """`{"name", "arguments"}`, or a list of them, as JSON text."""
    calls = from_json(text, f"turn {number} is a function_call, but")
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise DataError(f"turn {number} is a function_call without a name; expected {{'name', 'arguments'}}")
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
        for call in calls
    ]


def _gsm8k_label(answer: str) -> str:
    _, mark, number = answer.rpartition("####")
    if not mark or not number.strip():
        raise DataError("'answer' does not end in a line `#### number`")
    return number.strip().replace(",", "")


def _text(row: Row, key: str) -> str | None:
    """Return an optional text of a row."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"the row has {shown(value)} as {key!r}, expected a text")
    return value


def _exchange(question: Any, answer: Any) -> list[Row]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _field(row: Row, key: str, kind: type) -> Any:
    value = row.get(key)
    if not isinstance(value, kind):
        has = ", ".join(map(repr, row)) or "no key"
        found = f"has no {key!r}" if key not in row else f"has {shown(value)} as {key!r}"
        raise DataError(f"the row {found}, expected a {'list' if kind is list else 'text'}; its keys are {has}")
    return value
