"""Where the assistant's turns are in the rendering of a whole conversation, for any chat template.

A turn begins where the model would begin to generate: after the generation prompt. It ends with the token that ends
it, such as `<|im_end|>`; what a template writes after that token, mostly a newline, is not part of it, because the
model has stopped by then. So a turn holds the text, the think block that this rendering shows, and the tool calls.

Templates are programs, and nothing about them is assumed; each position is found by comparing renderings:

1. If the rendering of the messages before a turn, with the generation prompt, is how the whole rendering begins, then
   the turn begins where it ends. If the rendering up to and including a turn is how the whole rendering begins, then
   the turn ends where it ends. For most templates that is all.
2. Where it is not, because a template shows earlier turns otherwise than the last (Qwen3 leaves out their reasoning),
   the conversation is rendered once more with only that message's text replaced. Where the two renderings begin to
   differ, and where they stop to differ, is the message's own text; its header and its end are found next to it.

A template that writes no special token at the end of a turn (GLM) lets the model end it by naming the next speaker:
there the next special token (`<|user|>`, `<|observation|>`) belongs to the turn. The last turn has none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

from slime_core.data.chat_template import Template
from slime_core.data.conversation import REASONING_KEYS, Message
from slime_core.data.message_texts import with_arguments
from slime_core.errors import DataError
from slime_rollout_sft.masks.skeleton import places, shared_start, similar_turns

_REPLACEMENT = "\ue000"  # private use: no text and no template contains it
_MANY = 6  # turns, from which on a search for each of them takes longer than a skeleton
_ANCHOR = 24  # characters of the previous message's end that make a place unmistakable


@dataclass(frozen=True)
class Turn:
    """What the model generates as one message.

    Attributes:
        index: the message, counted from 0.
        start, end: the characters of the rendering.
        closed: whether it ends with a token that tells the model to stop.
        asked: whether the rendering has before it what the template writes to ask for it.
    """

    index: int
    start: int
    end: int
    closed: bool = True
    asked: bool = True


def assistant_turns(template: Template, messages: list[Message], text: str) -> list[Turn]:
    """Return the turns of the assistant in `text`, the rendering of `messages`, in order.

    A message that leaves no trace in the rendering has no turn.

    Raises:
        DataError: they cannot be told apart.
    """
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if len(indices) >= _MANY and (found := places(template, messages, text)) is not None:
        similar = similar_turns(messages, text, found, partial(_find, template, messages, text), Turn)
        if similar is not None:
            return similar
    return searched_turns(template, messages, text, indices)


def searched_turns(template: Template, messages: list[Message], text: str, indices: list[int]) -> list[Turn]:
    """Return the turns of these messages, each searched for on its own.

    Raises:
        DataError: they cannot be told apart.
    """
    turns: list[Turn] = []
    for i in indices:
        floor = turns[-1].end if turns else 0
        turn = _find(template, messages, text, i, floor)
        if turn is None:
            continue
        if not floor <= turn.start <= turn.end:
            raise _not_located(i)
        turns += _apart_from_results(template, messages, text, turn)
    return turns


def _not_located(i: int) -> DataError:
    return DataError(
        f"message {i + 1} cannot be located in the chat template's rendering. Mark what the model generates "
        "with {% generation %} and {% endgeneration %} in the template."
    )


def _apart_from_results(template: Template, messages: list[Message], text: str, turn: Turn) -> list[Turn]:
    """Return a turn in two parts where the template writes what tools answered within it: Gemma 4 has the text of a message that calls
    tools behind their answers."""
    message, behind = messages[turn.index], turn.index + 1
    if not message.get("tool_calls") or not message.get("content"):
        return [turn]
    answers = list(takewhile(lambda answer: answer["role"] != "assistant", messages[behind:]))
    others = [*messages[:behind], *map(_replaced, answers), *messages[behind + len(answers) :]]
    without = template.try_render(others) if answers else None
    if without is None or without == text or not turn.start < _difference(text, without)[0] < turn.end:
        return [turn]
    is_text = isinstance(message["content"], str)
    said = {**message, "content": _REPLACEMENT if is_text else [{"type": "text", "text": _REPLACEMENT}]}
    alone = template.try_render([*messages[: turn.index], said])
    whole = template.try_render([*messages[: turn.index], said, *messages[behind:]])
    if alone is None or whole is None:
        return [turn]
    calls, content = shared_start(text, alone), _difference(text, whole)[0]
    if not turn.start < calls < content < turn.end:
        return [turn]
    stop = alone.rpartition(_REPLACEMENT)[2].rstrip()  # what the model is stopped at so that the tools answer
    end = calls + (len(stop) if text.startswith(stop, calls) else 0)
    return [replace(turn, end=end, closed=True), replace(turn, start=content, asked=True)]


def _find(template: Template, messages: list[Message], text: str, i: int, floor: int) -> Turn | None:
    is_last = i == len(messages) - 1
    prompt = template.try_render(messages[:i], prompt=True) if i else None
    through = text if is_last else template.try_render(messages[: i + 1])
    start = len(prompt) if prompt is not None and text.startswith(prompt) else None
    end = len(through) if through is not None and text.startswith(through) else None
    asked = True
    if start is None or end is None:
        replaced = template.try_render([*messages[:i], _replaced(messages[i]), *messages[i + 1 :]])
        if replaced is None or replaced == text:
            return None
        own_start, own_end = _difference(text, replaced)
        if start is None:
            start, asked = _after_header(template, messages, i, text[:own_start], prompt, floor)
        if end is None:
            end = own_end + _closing(template, messages[: i + 1], through, text[own_end:])
    end = start + len(text[start:end].rstrip())
    if is_last:
        end = _without_end_of_conversation(template, messages, text, end)
    return _closed(template, Turn(i, start, end, asked=asked), text)


def ends_with_special(template: Template, text: str, start: int, end: int) -> bool:
    """Whether the characters `start` to `end` of `text` end with a special token."""
    tokens = list(template.special.finditer(text, start, end))
    return bool(tokens) and tokens[-1].end() == end


def closing_text(template: Template, messages: list[Message], text: str) -> str:
    """Return what the template writes to end the turn of the last message, whose rendering is `text`."""
    end = _without_end_of_conversation(template, messages, text, len(text.rstrip()))
    replaced = template.render([*messages[:-1], _replaced(messages[-1])])
    return text[_difference(text, replaced)[1] : end]


def _difference(text: str, other: str) -> tuple[int, int]:
    """Return (start, end) of the part of `text` that is not in `other`, which has something else in one place."""
    start = shared_start(text, other)
    return start, len(text) - shared_start(text[start:][::-1], other[start:][::-1])


def _replaced(message: Message) -> Message:
    """Return `message` with other text, but with all that templates are known to branch on.

    That is: think tags, parts, tool names.
    """
    replaced: dict[str, Any] = dict(message)
    for key in REASONING_KEYS:
        if isinstance(message.get(key), str) and message[key].strip():
            replaced[key] = _REPLACEMENT
    if calls := message.get("tool_calls"):
        replaced["tool_calls"] = [with_arguments(call, _REPLACEMENT, _REPLACEMENT) for call in calls]
    content = message.get("content")
    if isinstance(content, list):
        replaced["content"] = [{**p, "text": _replaced_text(p["text"])} if "text" in p else p for p in content]
    elif content or (content is not None and not calls):
        replaced["content"] = _replaced_text(content)
    return replaced


def _replaced_text(text: str) -> str:
    parts = re.split("(</?think>)", text)
    if not text.strip():
        return _REPLACEMENT
    return "".join(
        part if part.startswith(("<think>", "</think>")) or not part.strip() else _REPLACEMENT for part in parts
    )


def _after_header(
    template: Template, messages: list[Message], i: int, head: str, prompt: str | None, floor: int
) -> tuple[int, bool]:
    """Return where the generation prompt of message `i` ends in `head`, the rendering up to its own text; and whether it is there.

    Searched for: the end of the previous message and the longest part of the generation prompt, in whole tokens, that
    the rendering has. (A template may prompt with `<think>` and leave it out in what it renders.) Where it has nothing of it, as
    DeepSeek's templates write later calls, the message is all that follows those before it, as far as it is written as their own
    rendering is; or else all that would not be there if it said something else (`_own_beginning`).
    """
    before, is_known = messages[:i], prompt is not None
    if not is_known:  # nothing comes before, or the template refuses it
        before = [{"role": "user", "content": _REPLACEMENT}]
        prompt = template.try_render(before, prompt=True)
    base = template.try_render(before)
    if prompt is None or base is None or not prompt.startswith(base):
        return _own_beginning(template, messages, i, head), True
    header = prompt[len(base) :]
    offsets = template.tokenizer(header, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for cut in sorted({end for _, end in offsets}, reverse=True) or [0] * is_known:
        anchor = (base[-_ANCHOR:] if is_known else "") + header[:cut]
        found = head.rfind(anchor, max(0, floor - _ANCHOR))
        if found >= 0:
            return found + len(anchor), True
    begin = _within_no_token(template, head, shared_start(head, base))
    if is_known and begin >= _end_of_last(template, before, base):
        return max(begin, floor), False
    return _own_beginning(template, messages, i, head), True


def _own_beginning(template: Template, messages: list[Message], i: int, head: str) -> int:
    """Return where `head` would go on otherwise if message `i` were plain text: at its thought or its call, of whose beginning `head`
    has a part.

    Raises:
        DataError: the template refuses that text, and `head` ends within a call.
    """
    text = [{"type": "text", "text": _REPLACEMENT}] if isinstance(messages[i]["content"], list) else _REPLACEMENT
    said = [*messages[:i], {"role": messages[i]["role"], "content": text}]
    other = template.try_render([*said, *messages[i + 1 :]]) or template.try_render(said)
    if other is not None:
        return _within_no_token(template, head, shared_start(head, other))
    if messages[i].get("tool_calls") and not messages[i].get("content"):
        raise _not_located(i)
    return len(head)


def _end_of_last(template: Template, messages: list[Message], text: str) -> int:
    """Return where the text of the last message ends in `text`, the rendering of `messages`; its end where that cannot be told."""
    replaced = template.try_render([*messages[:-1], _replaced(messages[-1])])
    return len(text) if replaced is None or replaced == text else _difference(text, replaced)[1]


def _within_no_token(template: Template, text: str, position: int) -> int:
    """Return a position of `text`, or where the special token begins that it is in: two tokens that begin alike share nothing."""
    tokens = template.special.finditer(text)
    return next((token.start() for token in tokens if token.start() < position < token.end()), position)


def _closing(template: Template, through: list[Message], rendered: str | None, tail: str) -> int:
    """Return how many characters of `tail`, the rendering after a message's own text, end its turn.

    They are what follows the same text in `rendered`, the conversation up to there, as far as the two agree.
    """
    replaced = template.try_render([*through[:-1], _replaced(through[-1])])
    if rendered is None or replaced is None:
        return 0
    shared = shared_start(rendered[_difference(rendered, replaced)[1] :], tail)
    return len(tail[: _within_no_token(template, tail, shared)].rstrip())


def _without_end_of_conversation(template: Template, messages: list[Message], text: str, end: int) -> int:
    """Return `end`, or where the turn ends if a token for the end of the whole conversation follows (Phi-3).

    Such a token is one that the template does not write when a user's message follows.
    """
    tokens = list(template.special.finditer(text, 0, end))
    if len(tokens) < 2 or tokens[-1].end() != end or not text[tokens[-2].end() : end - len(tokens[-1][0])].isspace():
        return end
    replaced = template.try_render([*messages[:-1], _replaced(messages[-1])])
    longer = template.try_render([*messages, {"role": "user", "content": _REPLACEMENT}])
    if replaced is None or longer is None or tokens[-2].start() < _difference(text, replaced)[1]:
        return end
    goes_on = longer.startswith(text[: tokens[-2].end()]) and not longer.startswith(text[:end])
    return tokens[-2].end() if goes_on else end


def _closed(template: Template, turn: Turn, text: str) -> Turn:
    """Return `turn`, with the next special token if it does not end with one."""
    if ends_with_special(template, text, turn.start, turn.end):
        return turn
    following = re.compile(r"\s*").match(text, turn.end)
    token = template.special.match(text, following.end() if following else turn.end)
    return replace(turn, end=token.end() if token else turn.end, closed=token is not None)
