r"""Finds the letter that a response chooses, for `gpqa`.

A letter counts that is *stated*: in a box, after "the answer is" or its like in several languages, before "is correct". Only
where none is stated, one that stands alone counts: as the whole response, as a label at the beginning ("B) 12 m"), or as the
only one on the last line. Letters that are ruled out ("not A", "A is wrong") never count, and two letters that are given
side by side ("A or B") are no choice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from slime_core.rollout.boxed import last_box

_BRACKET = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|mbox|fbox|boxed) ?\{|[{}]"
)
"""The beginning of a font, or a bracket."""
_DECORATION = re.compile(
    r"\*+|__|\$|`|\\[,;:! ]|\\[()\[\]]|\\(?:displaystyle|left|right|quad)(?![a-z])|[“”\"]|^#+|(?<=\n)#+"
)
_FULL_WIDTH = str.maketrans(
    {chr(0xFF21 + i): chr(0x41 + i) for i in range(26)}
    | {chr(0xFF41 + i): chr(0x61 + i) for i in range(26)}
    | dict(zip("（）：，．", "():,.", strict=True))
)

_MENTION = re.compile(r"(?<![A-Za-z0-9_'’\\\u00c0-\u024f])[A-Za-z](?![A-Za-z0-9_'’\u00c0-\u024f]|[-+^=]\w|\.\w)")
# Words that may follow the letter "A", and the letter "I". Before any other small word it is the English word.
_AFTER_A = re.compile(
    r"(?!\s+[a-z])|\s+(?:because|since|as|due|and|or|but|which|for|given|by|with|is|are|was|from|after|seems|looks|must|would|"
    r"fails|cannot|can|does|do|has|in|on|at|the|this|here|then|both|together|rather|it|instead|over|only|too|alone|applies|"
    r"apply|fits?|works?|satisfies|holds|to|of|if|when|where|so|not|nor)\b"
)
_AFTER_I = re.compile(
    r"(?!\s+[a-z])|\s+(?:because|since|due|and|or|which|is|rather|seems|applies|fits|satisfies|holds|both)\b"
)
_NOUN = "answer|choice|option|selection|solution|pick|réponse|antwort|lösung|respuesta|resposta|risposta|ответ|答案|选项|正解|答え|정답|답"
_IS = (
    r"\b(?:is|are|was|be|would be|should be|must be|will be|has to be|can only be|equals|est|ist|es|é|è|lautet)\b|"
    r"应该是|应为|应是|是|为|は|은|는|[:=–—-]"
)
_ADVERB = r"(?:\w+ly|therefore|thus|hence|indeed|just|still|likely|most|then|given|by|now|in|fact|of course|none other than|donc|also)\b"
_CALLED = r"(?:option|choice|answer|letter|statement|the|number|alternative|réponse|antwort|opción|opção|opzione|选项|вариант|la|die)"
_PICKED = (
    r"\b(?:choose|chose|pick|picked|select|selected|selecting|choosing|go with|going with|opt for|settle on|vote for)\b|"
    "故选|应选|应该选|选择|选"
)
_STATED_BEFORE = re.compile(
    rf"(?:(?:{_NOUN})(?: (?:to|for|of|here|in|letter|among|that|correcte?|correcta|richtige)(?: \w+){{0,6}}?)?\s*(?:(?:{_IS})\s*)+"
    rf"(?:{_ADVERB}\s*){{0,3}}|\b(?:final|correct|my|answer) (?:{_NOUN})\W{{0,3}}|\b(?:{_NOUN})\W{{0,3}}\n\s*|(?:{_PICKED})\W{{0,3}})"
    rf"(?:{_CALLED}\W{{0,3}})*[\s(\[{{<]*$",
    re.IGNORECASE,
)
_STATED_AFTER = re.compile(
    rf"[)\]}}>]*,?\s*(?:is|are|was|must be|would be|est|ist|es)\s+(?:{_ADVERB}\s+){{0,2}}"
    r"(?:(?:the|my|la|die)\s+)?(?:(?:final|most|only|one)\s+)*(?:correct|right|best|true|answer|choice|appropriate|accurate|richtig)\b"
    r"|[)\]}]*\s*(?:选项|项)?\s*(?:是|为)?\s*(?:正确|对的)",
    re.IGNORECASE,
)
_RULED_OUT_BEFORE = re.compile(
    r"(?:\b(?:not|never|isn['’]t|aren['’]t|wasn['’]t|neither|nor|except|exclude[sd]?|excluding|eliminates?|eliminated|rules? out|"
    rf"without|unlike|nicht|pas)\b\W{{0,2}}(?:(?:{_CALLED}|be|is|to|choose|pick|with)\W{{1,3}})*|不是|不选|不能选|排除)[\s(\[]*$",
    re.IGNORECASE,
)
_RULED_OUT_AFTER = re.compile(
    r"[)\]}]*\s*(?:(?:is|are|was|seems|looks|would be)\s+(?:\w+ly\s+|also\s+)?(?:not|n['’]t|wrong|incorrect|false|impossible|excluded|"
    r"out|eliminated|ruled|too|never|a (?:common )?(?:distractor|trap))\b|(?:is|are|was|does|would|can)n['’]t|cannot|fails|不对|不正确|错)",
    re.IGNORECASE,
)
_JOIN = re.compile(
    r"[\s()\]}]*(?:[,/;&+、]|\bor\b|\band\b|\boder\b|\bund\b|\bou\b|\bet\b|或者?|和)[\s,]*"
    rf"(?:(?:and|or|also|maybe|perhaps|possibly|{_CALLED})\s+)*[\s(\[{{]*",
    re.IGNORECASE,
)
_SUBJECT = re.compile(r"[)\]}]*\s+(?:is|was|fails|has|would|can|cannot|does|seems|looks)\b")
_CONTRAST = re.compile(
    r"\b(?:no|not|wait|actually|but|however|instead|rather|first|initially|if|finally?|correct(?:ion)?|therefore|so|thus|hence|"
    r"sorry|hmm|should|mistake|now)\b|不|所以|因此|应该|但|故",
    re.IGNORECASE,
)
CONTEXT = 100
"""Characters around a letter that say what it is for."""


@dataclass(frozen=True)
class Mention:
    """A letter of a choice in a text, in upper case, and where it stands."""

    letter: str
    start: int
    end: int


def chosen_letter(response: str, valid: Sequence[str]) -> str | None:
    """Return the letter that a response chooses, in upper case, or None. Reasoning up to `</think>` does not count.

    Args:
        valid: the letters that there are, in upper case.
    """
    text = _answering(response)
    box = last_box(text)
    if box is not None and box.content is not None:
        content = _plain(box.content)
        mentions = _mentions(content, valid)
        if mentions and re.fullmatch(rf"(?:{_CALLED}\W*)*\W*", content[: mentions[0].start], re.IGNORECASE):
            return None if _is_joined(content, mentions, 0) else mentions[0].letter
    text = _plain(text)
    mentions = _mentions(text, valid)
    stated = [number for number, mention in enumerate(mentions) if _is_stated(text, mention)]
    if not stated:
        return _alone(text, valid)
    last = mentions[stated[-1]]
    if _is_joined(text, mentions, stated[-1]):
        return None
    for number in stated[:-1]:
        other, between = mentions[number], text[mentions[number].end : last.start]
        if other.letter != last.letter and len(between) < CONTEXT and not _CONTRAST.search(between):
            return None
    return last.letter


def stated_text(response: str) -> str:
    """Return what a response gives as its answer in words: the last box, what follows "the answer is", or all of it."""
    text = _answering(response)
    box = last_box(text)
    if box is not None and box.content is not None:
        return _plain(box.content)
    text = _plain(text)
    found = re.findall(rf"(?:{_NOUN})\s*(?:(?:{_IS})\s*)+([^\n]+)", text, re.IGNORECASE)
    return re.split(r"(?<=[^\d\s])\.(?:\s|$)", found[-1] if found else text)[0].strip()


def _answering(response: str) -> str:
    return response.rpartition("</think>")[2].strip()


def _plain(text: str) -> str:
    """Return a text without LaTeX fonts, dollar signs and marks of emphasis."""
    return _DECORATION.sub("", _without_fonts(text.translate(_FULL_WIDTH))).strip()


def _without_fonts(text: str) -> str:
    r"""Return a text without fonts such as \text{…}, but for those that are not closed or have other brackets within. In one pass."""
    pieces: list[str] = []  # what stands between brackets, and brackets, in turn
    opened: list[int] = []
    with_brackets: set[int] = set()
    start = 0
    for found in _BRACKET.finditer(text):
        pieces += [text[start : found.start()], found[0]]
        start = found.end()
        if found[0] != "}":
            opened.append(len(pieces) - 1)
        elif opened:
            opening = opened.pop()
            if pieces[opening] != "{" and opening not in with_brackets:
                pieces[opening] = pieces[-1] = ""
            elif opened:
                with_brackets.add(opened[-1])
    return "".join([*pieces, text[start:]])


def _mentions(text: str, valid: Sequence[str]) -> list[Mention]:
    """Return the letters of a text that may name a choice. A small letter does where brackets, punctuation or the end follow;
    "A" and "I" do where they are no English word."""
    found = []
    for match in _MENTION.finditer(text):
        letter = match[0]
        if letter.upper() not in valid:
            continue
        if letter.islower() and not _is_small_letter(text, match):
            continue
        if (letter == "A" and not _AFTER_A.match(text, match.end())) or (
            letter == "I" and not _AFTER_I.match(text, match.end())
        ):
            continue
        found.append(Mention(letter.upper(), match.start(), match.end()))
    return found


def _is_small_letter(text: str, match: re.Match[str]) -> bool:
    """Whether a small letter may name a choice: brackets, punctuation or the end follow, or it is stated and no word."""
    if re.match(r"\s*(?:$|\n|[.,;:)\]!。，])", text[match.end() :]):
        return True
    return (
        match[0] not in "ai"
        and _STATED_BEFORE.search(text[max(0, match.start() - CONTEXT) : match.start()]) is not None
    )


def _is_stated(text: str, mention: Mention) -> bool:
    if _is_ruled_out(text, mention):
        return False
    before, after = text[max(0, mention.start - CONTEXT) : mention.start], text[mention.end : mention.end + CONTEXT]
    if _STATED_BEFORE.search(before):
        return True
    return text[mention.start].isupper() and _STATED_AFTER.match(after) is not None


def _is_ruled_out(text: str, mention: Mention) -> bool:
    before, after = text[max(0, mention.start - CONTEXT) : mention.start], text[mention.end : mention.end + CONTEXT]
    return bool(_RULED_OUT_BEFORE.search(before) or _RULED_OUT_AFTER.match(after))


def _is_joined(text: str, mentions: Sequence[Mention], number: int) -> bool:
    """Whether another letter is given together with this one: "A or B", "A, B", "A/B"."""
    for first, second in ((number - 1, number), (number, number + 1)):
        if first < 0 or second >= len(mentions) or mentions[first].letter == mentions[second].letter:
            continue
        joined = _JOIN.fullmatch(text, mentions[first].end, mentions[second].start) is not None
        own_clause = second > number and _SUBJECT.match(text, mentions[second].end) is not None
        if joined and not own_clause and not _is_ruled_out(text, mentions[first]):
            return True
    return False


def _alone(text: str, valid: Sequence[str]) -> str | None:
    """Return the letter of a text that states none, or None."""
    mentions = _mentions(text, valid)
    if len(mentions) == 1 and re.fullmatch(rf"(?:{_CALLED}\W*)*\W*\w\W*", text, re.IGNORECASE):
        return mentions[0].letter
    for part in (text, text.rpartition("\n")[2]):
        mentions = _mentions(part, valid)
        labelled = re.match(r"[\s>-]*(?:\([A-Za-z]\)|[A-Z][.:)\]])\s", part)
        if labelled and mentions and mentions[0].end <= labelled.end():
            return None if _is_joined(part, mentions, 0) else mentions[0].letter
    letters = {m.letter for m in mentions if part[m.start].isupper() and not _is_ruled_out(part, m)}
    return letters.pop() if len(letters) == 1 else None
