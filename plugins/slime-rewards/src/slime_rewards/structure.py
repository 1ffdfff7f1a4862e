r"""Takes an answer apart as it is written: lists, sets, unions, tuples, intervals, matrices, equations. Called by `equality`
with texts in normal form. Brackets of intervals may differ, so `(` and `[` open, `)` and `]` close the same."""

from __future__ import annotations

import re
from dataclasses import dataclass

from slime_rewards.notation import FONTS, without_fonts
from slime_rewards.numerals import read_numeral
from slime_rewards.units import read_quantity

_CONJUNCTION = re.compile(
    rf",? ?\\(?:{FONTS}) ?\{{ ?,? ?(?:and|or) ?\}} ?|,? ?(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])(?!\}})"
    r"|\\(?:lor|vee|cup)(?![a-zA-Z])|[和或及与]"
)
_ONE_FONT = re.compile(rf"^\\(?:{FONTS}) ?\{{([^{{}}]*)\}}$")
_NAMED = re.compile(r"^([A-Za-z](?: ?_ ?(?:\w|\{\w+\}))?) ?(?:=|\\in(?![a-zA-Z])) ?")
_SUCH_THAT = re.compile(r"^[A-Za-z](?: ?\\in ?\\mathbb\{R\})? ?[|:] ?")
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z])")
_RELATION = re.compile(r"\\(?:le|ge|ne|approx)(?![a-zA-Z])|[=<>]")
_MATRIX = re.compile(r"^\\begin\{([bBpvV]?)(?:small)?matrix\}(.*)\\end\{[bBpvV]?(?:small)?matrix\}$")
_ARRAY = re.compile(r"^[\[(] ?\\begin\{(?:array|matrix)\}(?: ?\{[^{}]*\})?(.*)\\end\{(?:array|matrix)\} ?[\])]$")
_VARIABLE = re.compile(r"^(?:[A-Za-z](?: ?_ ?(?:\w|\{\w+\}))?|\\[a-z]+)$")
_INDEX = re.compile(r" ?_ ?(?:\{[^{}]*\}|\w)|(?<![\\a-zA-Z])[A-Za-z]+ ?\(.*\)")
"""What belongs to a name: an index, or what a function is of."""
_CONSTANT = re.compile(r"\d|\\pi(?![a-zA-Z])|^ ?e ?$")
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}


@dataclass(frozen=True)
class Bracketed:
    """A tuple or an interval.

    Attributes:
        opening, closing: "(" or "[", ")" or "]".
        items: what stands between, in order.
        variable: of an inequality, what lies in the interval; else None.
    """

    opening: str
    items: tuple[str, ...]
    closing: str
    variable: str | None = None


def elements(text: str) -> list[str]:
    r"""Return the values of a list or a set: "1, 2", "1 or 2", "\{1, 2\}", "[0,1] \cup [2,3]", "\pm 1". One value
    for everything else; none for the empty set. A list has what it repeats as often, a set once."""
    once = is_set(text) or "\\cup" in text
    while found := _ONE_FONT.match(text):
        text = found[1].strip()
    if re.fullmatch(r"\\emptyset ?", text):
        return []
    if text.startswith("\\{") and text.endswith("\\}") and _closes_at(text, 1) == len(text) - 1:
        text = _SUCH_THAT.sub("", text[2:-2].strip())
    if read_numeral(without_fonts(read_quantity(text).text)):
        return [text]
    parts = split(_CONJUNCTION.sub(" , ", text), ",;")
    named = _NAMED.match(parts[0]) if len(parts) > 1 else None
    if named and not any(_RELATION.search(part) for part in parts[1:]):
        parts[0] = parts[0][named.end() :]
    found_parts: list[str] = []
    for part in parts:
        nested = part != text and part.startswith(("\\{", "\\emptyset"))
        for value in elements(part) if nested else _both_signs(part):
            if not (once and value in found_parts):
                found_parts.append(value)
    return found_parts


def is_set(text: str) -> bool:
    """Whether the text is a set of values in braces, or empty."""
    return text.startswith("\\emptyset") or (
        text.startswith("\\{") and text.endswith("\\}") and _closes_at(text, 1) == len(text) - 1
    )


def bracketed(text: str) -> Bracketed | None:
    """Return the tuple or interval that all of the text is, or None. It has at least two items."""
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]") or _closes_at(text, 0) != len(text) - 1:
        return None
    items = split(text[1:-1], ",;")
    return Bracketed(text[0], tuple(items), text[-1]) if len(items) > 1 else None


def interval(text: str) -> Bracketed | None:
    r"""Return the interval that an inequality of one variable describes, such as (3, \infty) for x > 3, or None."""
    parts, signs = relation(text)
    if not signs or not set(signs) <= set(_FLIPPED):
        return None
    if len(parts) == 2:
        if _VARIABLE.match(parts[1]) and not _VARIABLE.match(parts[0]):
            parts, signs = parts[::-1], [_FLIPPED[signs[0]]]
        if not _VARIABLE.match(parts[0]):
            return None
        edge = "(" if signs[0] in "<>" else "["
        if signs[0] in (">", "\\ge"):
            return Bracketed(edge, (parts[1], "\\infty"), ")", parts[0])
        return Bracketed("(", ("-\\infty", parts[1]), edge.replace("(", ")").replace("[", "]"), parts[0])
    if len(parts) != 3 or not _VARIABLE.match(parts[1]):
        return None
    if all(sign in (">", "\\ge") for sign in signs):
        parts, signs = parts[::-1], [_FLIPPED[sign] for sign in signs[::-1]]
    if not all(sign in ("<", "\\le") for sign in signs):
        return None
    return Bracketed("(["[signs[0] != "<"], (parts[0], parts[2]), ")]"[signs[1] != "<"], parts[1])


def relation(text: str) -> tuple[list[str], list[str]]:
    """Return what stands between the relation signs of a text, outside all brackets, and those signs."""
    parts, signs, start = [], [], 0
    depths = _depths(text)
    for found in _RELATION.finditer(text):
        if depths[found.start()] == 0:
            parts.append(text[start : found.start()].strip())
            signs.append(found[0])
            start = found.end()
    return [*parts, text[start:].strip()], signs


def without_approximation(text: str) -> str:
    r"""Return a single value without what it is about: "2\pi" of "2\pi \approx 6.28". Behind a name, as in "x \approx 6.28", stands
    the value itself."""
    depths = _depths(text)
    side = 0
    for found in _RELATION.finditer(text):
        if depths[found.start()] == 0:
            if found[0] == "\\approx" and _CONSTANT.search(_INDEX.sub("", without_fonts(text[side : found.start()]))):
                return text[: found.start()].strip()
            side = found.end()
    return text


def rows(text: str) -> tuple[str, list[list[str]]] | None:
    """Return ("" or "|" or "||", the rows of a matrix), or None. Round and square brackets mean the same."""
    if found := _MATRIX.match(text):
        kind, inner = {"v": "|", "V": "||"}.get(found[1], ""), found[2]
    elif found := _ARRAY.match(text):
        kind, inner = "", found[1]
    else:
        return None
    lines = [line for line in re.split(r"\\\\(?: ?\[[^\]]*\])?|\\cr(?![a-zA-Z])", inner) if line.strip()]
    return kind, [[cell.strip() for cell in line.split("&")] for line in lines]


def without_brackets(text: str) -> str:
    """Return a text without brackets around all of it."""
    while (
        text[:1] in ("(", "[")
        and text[-1:] in (")", "]")
        and text[1:-1].strip()
        and _closes_at(text, 0) == len(text) - 1
    ):
        text = text[1:-1].strip()
    return text


def split(text: str, separators: str) -> list[str]:
    """Split a text at separators outside all brackets; empty parts are left out."""
    parts, start = [], 0
    for position, (character, depth) in enumerate(zip(text, _depths(text), strict=True)):
        if depth == 0 and character in separators:
            parts.append(text[start:position].strip())
            start = position + 1
    return [part for part in (*parts, text[start:].strip()) if part]


def _depths(text: str) -> list[int]:
    """Return for each character how many brackets are open there, a bracket itself counted as inside."""
    depths, depth = [], 0
    for character in text:
        if character in "([{":
            depth += 1
        depths.append(depth)
        if character in ")]}":
            depth = max(0, depth - 1)
    return depths


def _closes_at(text: str, position: int) -> int:
    """Return where the bracket that opens at `position` closes, or -1."""
    depth = 0
    for index in range(position, len(text)):
        depth += (text[index] in "([{") - (text[index] in ")]}")
        if depth == 0:
            return index
    return -1


def _both_signs(value: str) -> list[str]:
    r"""Return the two values of "1 \pm x", with plus and with minus; a value without the sign as it is."""
    if not _PLUS_MINUS.search(value):
        return [value]
    return [_PLUS_MINUS.sub(sign, value).lstrip("+ ").strip() for sign in ("+", "-")]
