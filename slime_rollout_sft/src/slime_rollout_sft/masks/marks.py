"""Turns that a chat template marks itself with `{% generation %}`. Called by the loss-mask generators.

The marks are followed as they are. What they leave out or train besides is found by comparing them with the turns that the
rendering shows (`spans`), and is said.
"""

from __future__ import annotations

from collections import defaultdict

from slime_core.data.chat_template import Template
from slime_core.data.conversation import Message
from slime_core.errors import DataError
from slime_rollout_sft.masks.spans import Turn, assistant_turns, ends_with_special


def marked_turns(template: Template, messages: list[Message], text: str) -> tuple[list[Turn], list[str]]:
    """Return what the template marks as generated in `text`, the rendering of `messages`, in order; and what it trains with that
    which the assistant does not generate, such as headers, or line ends behind the end.

    Raises:
        DataError: the marks belong to no messages.
    """
    spans = template.marked_spans(messages)
    try:
        turns = assistant_turns(template, messages, text)
    except DataError as error:  # the marks are all there is to go by
        unknown = f"the marks of the chat template may also train what the assistant does not generate, which cannot be checked: {error}"
        return _turns(template, text, spans, _counted(template, messages, spans)), [unknown]
    owners = [{turn.index for turn in turns if turn.start < end and turn.end > start} for start, end in spans]
    is_known = all(len(indices) == 1 for indices in owners)
    indices = [min(own) for own in owners] if is_known else _counted(template, messages, spans)
    marked = _turns(template, text, spans, indices)
    return marked, _trained_besides(text, marked, turns)


def _counted(template: Template, messages: list[Message], spans: list[tuple[int, int]]) -> list[int]:
    """Return the message of every mark. One can have several marked parts, or none: they are counted with and without it.

    Raises:
        DataError: the marks belong to no messages.
    """
    indices: list[int] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            count = len(template.marked_spans(messages[: i + 1]))
            indices += [i] * len(spans[len(indices) : count])
    if len(indices) != len(spans):
        raise DataError(f"the chat template marks {len(spans)} generated parts, but {len(indices)} belong to messages.")
    return indices


def _trained_besides(text: str, marked: list[Turn], turns: list[Turn]) -> list[str]:
    besides: defaultdict[str, list[str]] = defaultdict(list)
    for mark in marked:
        position = mark.start
        for turn in (turn for turn in turns if turn.start < mark.end and turn.end > mark.start):
            besides[text[position : max(position, turn.start)]].append(str(mark.index + 1))
            position = max(position, turn.end)
        besides[text[position : max(position, mark.end)]].append(str(mark.index + 1))
    besides.pop("", None)
    return [
        f"the marks of the chat template also train {piece!r}, which the assistant does not generate (message "
        f"{', '.join(dict.fromkeys(numbers))})"
        for piece, numbers in besides.items()
    ]


def _turns(template: Template, text: str, spans: list[tuple[int, int]], indices: list[int]) -> list[Turn]:
    """Return the marked parts of messages, of which only the last of each has to end the turn."""
    last = {index: number for number, index in enumerate(indices)}
    turns = []
    for number, (index, (start, end)) in enumerate(zip(indices, spans, strict=True)):
        said = start + len(text[start:end].rstrip())
        closed = last[index] != number or ends_with_special(template, text, start, said)
        turns.append(Turn(index, start, end, closed))
    return turns
