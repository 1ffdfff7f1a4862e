r"""Finds `\boxed{…}`, how mathematical texts mark their answer. Used for rewards that are named `boxed_…`, and by rewards
that look for a box themselves."""

from __future__ import annotations

from dataclasses import dataclass

BOX = "\\boxed{"


@dataclass(frozen=True)
class Box:
    """The last box of a text.

    Attributes:
        start: the position in the text at which it begins.
        content: what stands between its braces; None when they are not closed.
    """

    start: int
    content: str | None


def last_box(text: str) -> Box | None:
    """The last box, closed or not, or None when there is none. Braces inside it are kept."""
    start = text.rfind(BOX)
    if start < 0:
        return None
    depth = 1
    for position in range(start + len(BOX), len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return Box(start, text[start + len(BOX) : position])
    return Box(start, None)
