"""Turns of long conversations with few renderings. Called by the search for turns.

`spans` renders the conversation several times for each turn, which takes a time that grows with its square. Here every text is
replaced by a mark of its own and the whole is rendered once more: what stands between the marks is the skeleton that the
template writes. Walking through the true rendering along it, text by text, gives the place of everything that messages say. All
turns with the same skeleton around them have the same header and the same end, so that one of each kind is searched for as
`spans` does, and the others follow. Where the walk does not come out exactly, nothing is known and every turn is searched for.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slime_core.data.chat_template import Template
from slime_core.data.conversation import REASONING_KEYS, Message
from slime_core.data.message_texts import with_arguments

if TYPE_CHECKING:
    from slime_rollout_sft.masks.spans import Turn

_MARK = "\ue002{}\ue003"  # private use: no text and no template contains it
_ANY_MARK = re.compile(_MARK.format("[0-9]+"))
_THINK = re.compile("(</?think>)")
_ASKED = {"role": "user", "content": "question"}

Place = tuple[int, int]
Search = Callable[[int, int], "Turn | None"]


@dataclass(frozen=True)
class _Piece:
    """A text of a message, or the arguments of a call.

    Attributes:
        message: the message, counted from 0.
        mark: what stands for it.
        forms: how a template may write it.
        call: the call and the one with marks, where it is the arguments of a call.
    """

    message: int
    mark: str
    forms: tuple[str, ...]
    call: tuple[dict[str, Any], dict[str, Any]] | None = None


@dataclass(frozen=True)
class _Seen:
    """Where the marked rendering shows a piece.

    Attributes:
        start, end: characters of the marked rendering; the true one has one of `forms` there.
    """

    message: int
    start: int
    end: int
    forms: tuple[str, ...]


def places(template: Template, messages: list[Message], text: str) -> dict[int, Place] | None:
    """Return where in `text`, the rendering of `messages`, stands what each message says, as (start, end); None where that
    cannot be told. A message that leaves no trace has no place."""
    pieces: list[_Piece] = []
    marked = template.try_render([_with_marks(message, i, pieces) for i, message in enumerate(messages)])
    if marked is None:
        return None
    seen = _seen(pieces, marked)
    found = _walk(seen, marked, text)
    if found is None and any(piece.call for piece in pieces):  # arguments that are not written as JSON
        found = _walk(_with_own_forms(template, pieces, seen, marked), marked, text)
    return found


def _seen(pieces: list[_Piece], marked: str) -> dict[str, _Seen]:
    """Return {mark: where it is seen}, in the order in which the pieces were made."""
    shown: dict[str, Place] = {}
    for match in _ANY_MARK.finditer(marked):
        shown[match[0]] = (shown.get(match[0], match.span())[0], match.end())
    seen = {}
    for piece in pieces:
        if piece.mark in shown:
            start, end = shown[piece.mark]
            if piece.call and marked[start - 2 : start] == '{"' and marked[end : end + 2] == '"}':
                start, end = start - 2, end + 2
            seen[piece.mark] = _Seen(piece.message, start, end, piece.forms)
    return seen


def _walk(seen: dict[str, _Seen], marked: str, text: str) -> dict[int, Place] | None:
    """Go through the true rendering along the marked one; None where the two do not agree but for the marks."""
    found: dict[int, Place] = {}
    position = behind = 0  # in the true rendering and in the marked one
    order = list(seen.values())
    for number, piece in enumerate(order):
        between = marked[behind : piece.start]
        if piece.start < behind or not text.startswith(between, position):
            return None
        position += len(between)
        following = marked[piece.end : order[number + 1].start if number + 1 < len(order) else len(marked)]
        form = next((form for form in piece.forms if text.startswith(form + following, position)), None)
        if form is None:
            return None
        first = found.get(piece.message, (position, position))[0]
        position, behind = position + len(form), piece.end
        found[piece.message] = (first, position)
    return found if text[position:] == marked[behind:] else None


def _with_own_forms(template: Template, pieces: list[_Piece], seen: dict[str, _Seen], marked: str) -> dict[str, _Seen]:
    """Return the same with the arguments of calls as this template writes them: what differs when a conversation of that call
    alone is rendered with them and with their mark."""
    small, changed = Template(template.tokenizer, None, template.variables, template.source), dict(seen)
    known: dict[str, tuple[int, int, str] | None] = {}
    for piece in pieces:
        if piece.call is None or piece.mark not in seen:
            continue
        key = json.dumps(piece.call[0]["function"], ensure_ascii=False)
        if key not in known:
            known[key] = _own_form(small, piece)
        if (form := known[key]) is not None:
            first, last = _first_and_last(piece.mark, marked)
            changed[piece.mark] = _Seen(piece.message, first - form[0], last + form[1], (form[2],))
    return changed


def _own_form(template: Template, piece: _Piece) -> tuple[int, int, str] | None:
    """Return (characters before the mark, characters behind it, what stands there in the true rendering)."""
    renderings = [
        template.try_render([_ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}])
        for call in piece.call or ()
    ]
    true, marked = renderings
    if true is None or marked is None or piece.mark not in marked:
        return None
    start = shared_start(true, marked)
    behind = shared_start(true[start:][::-1], marked[start:][::-1])
    first, last = _first_and_last(piece.mark, marked)
    return first - start, len(marked) - behind - last, true[start : len(true) - behind]


def _first_and_last(mark: str, marked: str) -> Place:
    return marked.find(mark), marked.rfind(mark) + len(mark)


def similar_turns(
    messages: list[Message], text: str, found: dict[int, Place], search: Search, make: Callable[..., Turn]
) -> list[Turn] | None:
    """Return the turns of the assistant in order; None where they cannot be told from each other.

    Args:
        found: what `places` returned. Of messages that have no place in it, those that stand alike between others' are searched for
            once, too.
        search: finds the turn of one message; its second argument is where the turn before ends.
        make: makes a turn of index, start, end, whether it is closed and whether it is asked for.
    """
    order = sorted(found)
    kinds = [_kind(message) for message in messages]
    known: dict[Any, tuple[int, int, bool, bool] | None] = {}
    turns: list[Turn] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        at = bisect_left(order, i)
        before = order[at - 1] if at else None
        behind = at + (i in found)
        after = order[behind] if behind < len(order) else None
        first = found[before][1] if before is not None else 0
        last = found[after][0] if after is not None else len(text)
        start, end = found.get(i, (first, first))  # one without a trace may have a turn: its header and its end
        around = (text[first:start], text[end:last])
        begin = before if before is not None else 0
        signature = (around, i in found, i - begin, *kinds[begin : after + 1 if after is not None else len(messages)])
        if signature not in known:
            turn = search(i, turns[-1].end if turns else 0)
            known[signature] = None if turn is None else (turn.start - start, turn.end - end, turn.closed, turn.asked)
        if (offsets := known[signature]) is None:
            continue
        turn = make(i, start + offsets[0], end + offsets[1], *offsets[2:])
        if turn.start < (turns[-1].end if turns else 0) or turn.end < turn.start:
            return None
        turns.append(turn)
    return turns


def _with_marks(message: Message, index: int, pieces: list[_Piece]) -> Message:
    """Return `message` with marks in place of its texts, and add these to `pieces` in the order in which templates write
    them."""

    def mark(*forms: str) -> str:
        pieces.append(_Piece(index, _MARK.format(len(pieces)), forms))
        return pieces[-1].mark

    marked: dict[str, Any] = dict(message)
    for key in REASONING_KEYS:
        if message.get(key, "").strip():
            marked[key] = mark(*_stripped(message[key]))
    content = message.get("content")
    if isinstance(content, list):
        marked["content"] = [{**p, "text": mark(*_stripped(p["text"]))} if "text" in p else p for p in content]
    elif content:
        marked["content"] = "".join(
            part if _THINK.fullmatch(part) or not part.strip() else mark(*_stripped(part))
            for part in _THINK.split(content)
        )
    if calls := message.get("tool_calls"):
        marked["tool_calls"] = [_mark_call(call, index, pieces) for call in calls]
    return marked


def _mark_call(call: dict[str, Any], index: int, pieces: list[_Piece]) -> dict[str, Any]:
    """Return a call with a mark in place of its arguments, and add these to `pieces`."""
    arguments = call["function"]["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    name = _MARK.format(len(pieces))
    marked = with_arguments(call, name, name)
    pieces.append(_Piece(index, name, (arguments,), (call, marked)))
    return marked


def _stripped(text: str) -> Iterator[str]:
    """Yield the forms in which templates write a text."""
    yield from dict.fromkeys(
        (text, text.strip(), text.lstrip(), text.rstrip(), text.strip("\n"), text.lstrip("\n"), text.rstrip("\n"))
    )


def _kind(message: Message) -> tuple[Any, ...]:
    return (
        message["role"],
        bool(str(message.get("content") or "").strip()),
        len(message.get("tool_calls") or ()),
        any(message.get(key) for key in REASONING_KEYS),
    )


def shared_start(a: str, b: str) -> int:
    """Return how many characters `a` and `b` begin with in common."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
