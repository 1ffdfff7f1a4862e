r"""Finds `\boxed{…}`, how mathematical texts mark their answer. Used for rewards that are named `boxed_…`, and by rewards
that look for a box themselves. `\fbox{…}` is one too, in a text without the other."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOX = re.compile(r"\\boxed\s*\{")
_FRAME = re.compile(r"\\fbox\s*\{")


@dataclass(frozen=True)
class Box:
    """A box of a text.

    Attributes:
        start: the position in the text at which it begins.
        content: what stands between its braces; None when they are not closed.
        end: the position after it; that of the end of the text when it is not closed.
    """

    start: int
    content: str | None
    end: int


def last_box(text: str) -> Box | None:
    """The last box, closed or not, or None when there is none. Braces inside it are kept."""
    found = last_boxes(text, 1)
    return found[-1] if found else None


def last_boxes(text: str, most: int = 20) -> list[Box]:
    """The last boxes of a text, closed or not, in the order in which they begin; at most so many."""
    starts = list(_BOX.finditer(text)) or list(_FRAME.finditer(text))
    return [_read(text, found.start(), found.end()) for found in starts[-most:]]


def _read(text: str, start: int, inside: int) -> Box:
    depth = 1
    for position in range(inside, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return Box(start, text[inside:position], position + 1)
    return Box(start, None, len(text))
