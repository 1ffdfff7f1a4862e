"""Turns that a chat template marks itself with `{% generation %}`. Called by the loss-mask generators.

The marks are followed as they are. What they leave out or train besides is found by comparing them with the turns that the
rendering shows (`spans`), and is said.
"""

from __future__ import annotations

from collections import defaultdict

from slime_core.data.conversation import Message
from slime_core.errors import DataError
from slime_rollout_sft.masks.spans import Turn, assistant_turns, ends_with_special
from slime_rollout_sft.masks.template import Template


def marked_turns(template: Template, messages: list[Message], text: str) -> list[Turn]:
    """Return what the template marks as generated in `text`, the rendering of `messages`, in order.

    Raises:
        DataError: the marks belong to no messages.
    """
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spans = template.marked_spans(messages)
    if len(spans) == len(indices):
        return [_turn(template, text, i, start, end) for i, (start, end) in zip(indices, spans, strict=True)]
    # A message can have several marked parts, or none: count the marks with and without it.
    turns: list[Turn] = []
    for i in indices:
        count = len(template.marked_spans(messages[: i + 1]))
        turns += [_turn(template, text, i, start, end) for start, end in spans[len(turns) : count]]
    if len(turns) != len(spans):
        raise DataError(f"the chat template marks {len(spans)} generated parts, but {len(turns)} belong to messages.")
    return _closed_once(turns)


def trained_besides(template: Template, messages: list[Message], text: str, marked: list[Turn]) -> list[str]:
    """Say what `marked` turns train that the assistant does not generate, such as headers, or line ends behind the end."""
    try:
        turns = assistant_turns(template, messages, text)
    except DataError as error:  # the marks are all there is to go by
        return [
            f"the marks of the chat template may also train what the assistant does not generate, which cannot be checked: {error}"
        ]
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


def _turn(template: Template, text: str, index: int, start: int, end: int) -> Turn:
    said = start + len(text[start:end].rstrip())
    return Turn(index, start, end, closed=ends_with_special(template, text, start, said))


def _closed_once(turns: list[Turn]) -> list[Turn]:
    """Return the parts of messages, of which only the last has to end the turn."""
    last = {turn.index: number for number, turn in enumerate(turns)}
    return [
        turn if last[turn.index] == number else Turn(turn.index, turn.start, turn.end)
        for number, turn in enumerate(turns)
    ]
