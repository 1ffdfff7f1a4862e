r"""Finds what a response gives as its answer, for `math` and `deepscaler`.

A response says it once, in a box. Without any box, in words: after `####` on the last line, after "the answer is", or in
bold at its end. What is only mentioned is no answer. Answers that are given next to each other count as one answer with
several values, so that nobody gains by giving many.
"""

from __future__ import annotations

import re

from slime_core.rollout.boxed import last_boxes

TAIL = 2000
"""Characters at the end of a response in which an answer in words is looked for."""

_NEXT_TO = re.compile(
    r"[\s$,;&*]*(?:\\[()\[\],;]|\\q?quad|\\text\{\s*,?\s*(?:and|or)\s*\}|and|or|和|或|及|与|以及|[\s$,;&*、])*"
    r"(?:[a-zA-Z](?:_\w|_\{\w+\})?\s*=\s*)?"
)
_HASHES = re.compile(r"^\s*#{4}[^\S\n]*(?!#)(.+?)\s*$")
_STATED = re.compile(
    r"answer(?:\s+(?!is\b|are\b|not\b)[\w'()]+){0,8}[\s*]*"
    r"(?:\b(?:is|are|equals|would\s+be|should\s+be|must\s+be)\b[\s*]*:?|[:：=])[\s*]*"
    r"|^[\s#*]*(?:the\s+)?(?:final\s+)?answer[\s*]*:?[\s*]*\n\s*"
    r"|答案\s*(?:应该)?\s*(?:是|为|[:：])\s*",
    re.IGNORECASE | re.MULTILINE,
)
_BOLD = re.compile(r"(\*\*|__)(?=\S)([^*_\n]+?)(?<=\S)\1")
_FORMULAS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_CLAUSE_ENDS = re.compile(
    r"\n|[.!?。！？](?=\s|$|[*$])|[,;，；](?=\s+(?!and\b|or\b)[A-Za-z]{2})|\s[(—–]|\s(?:because|since|as|which|so)\s"
)
_SENTENCE_ENDS = re.compile(r"\n|[.!?。](?=\s|$)")
_OPENING_WORDS = re.compile(r"^[A-Za-z][A-Za-z ,'-]* (?:is|are|equals)\b:? ")
_HEDGES = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|alternatively|otherwise|might|could)\b|或|也许|可能", re.IGNORECASE
)


def given_answer(response: str) -> str | None:
    r"""Return the answer of a response, or None. With a box it is what stands in the last one, and in those next to it; one
    that is not closed is no answer."""
    if last_boxes(response, 1):
        return boxed_answer(response)
    return stated_answer(response[-TAIL:])


def boxed_answer(response: str) -> str | None:
    r"""Return what the last `\boxed{…}` holds, or None when there is none or it is not closed.

    Boxes next to each other, such as `\boxed{1} and \boxed{2}`, are one answer: "1, 2".
    """
    found = last_boxes(response)
    if not found or found[-1].content is None:
        return None
    contents = [found[-1].content]
    for before, box in zip(found[-2::-1], found[:0:-1], strict=True):
        if before.content is None or before.end > box.start or not _NEXT_TO.fullmatch(response[before.end : box.start]):
            break
        if before.content.strip() != contents[0].strip():
            contents.insert(0, before.content)
    return ", ".join(contents)


def stated_answer(text: str) -> str | None:
    """Return the answer that a text without boxes gives in words, or None."""
    text = text.rstrip()
    last_line = text[text.rfind("\n") + 1 :]
    if found := _HASHES.match(last_line):
        return found[1]
    if stated := list(_STATED.finditer(text)):
        return _clause(text[stated[-1].end() :])
    bold = _BOLD.findall(last_line)
    return bold[-1][1] if len(bold) == 1 else None


def _clause(text: str) -> str | None:
    """Return the first clause of a text, or the formula that it begins with; None when what follows takes it back."""
    text = text.lstrip()
    for opening, closing in _FORMULAS:
        end = text.find(closing, len(opening)) if text.startswith(opening) else -1
        if end > 0:
            clause, rest = text[len(opening) : end], text[end + len(closing) :]
            following = rest[: found.start()] if (found := _SENTENCE_ENDS.search(rest)) else rest
            if re.match(r"[\s,;]*(?:and|or|,|;|\$|\\\()", following):
                return text[: end + len(closing) + len(following)]
            break
    else:
        found = _CLAUSE_ENDS.search(text)
        clause, rest = (text[: found.start()], text[found.start() :]) if found else (text, "")
    if _HEDGES.search(rest) and re.search(r"\d", rest):
        return None
    bold = _BOLD.findall(clause)
    return bold[0][1] if len(bold) == 1 else _OPENING_WORDS.sub("", clause).strip(" *_")
