r"""Is an answer the label? Called by the reward `math` in the run's process, and by `math_worker` in a worker process.

An answer is taken apart as it is written: lists and sets of values in any order, tuples, intervals and matrices position by
position, then equations, inequalities, units and words. What is left are single values. Numbers that are written out are
compared exactly here. All other values need algebra, which may take for ever and is therefore left to `algebra`.

An answer that is still to be worked out is none: where the label is a whole number, so must be the answer. `\boxed{3+4}` is
not 7, while `\boxed{3+4=7}` is. Several values never equal one: "3 or 4" is neither 3 nor 4. Of "2\pi \approx 6.28" the answer is
what is exact, 2\pi; where the label of a list repeats a value, as prime factors do, so must the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from slime_rewards.notation import FONTS, normal_form, without_fonts
from slime_rewards.numerals import Numeral, read_numeral
from slime_rewards.structure import (
    Bracketed,
    bracketed,
    elements,
    interval,
    is_set,
    relation,
    rows,
    without_approximation,
    without_brackets,
)
from slime_rewards.units import Quantity, read_quantity

Algebra = Callable[[str, str], bool]
"""Whether two expressions or equations in normal form, without fonts, are the same whatever their letters stand for."""

_MEMBER = re.compile(r"^(?:[A-Za-z](?: ?_ ?(?:\w|\{\w+\}))?|\\[a-z]+) ?\\in(?![a-zA-Z]) ?")
_ANNOUNCED = re.compile(
    rf"^(?:\\(?:{FONTS}) ?\{{)? ?(?:the )?(?:final |correct )?answer (?:is|:)[ :]*(?:\}} ?)?(?=.)", re.IGNORECASE
)
_CALLED = re.compile(r"^(?:option|choice|answer) ?:? ?(?=\(?[A-Z]\b)", re.IGNORECASE)
_CLOCK = re.compile(r"^\d+(?: ?: ?\d+)+$")
_IN_BASE = re.compile(r"^([0-9A-Fa-f]+) ?_ ?(?:\{ ?(\w+) ?\}|(\d+))$")
_WORDS = re.compile(r"^[^\W\d_][^\d\\^_=<>+*/|{}()\[\]]*$")
_WORDS_OF_MATHEMATICS = frozenset({"yes", "no", "true", "false", "odd", "even", "none", "all", "dne"})
_TEXT = re.compile(rf"\\(?:{FONTS}) ?\{{[^{{}}]*[^\W\d_]{{2}}[^{{}}]*\}}")


def equal(label: str, answer: str, algebra: Algebra) -> bool:
    """Whether an answer says what the label says.

    Args:
        label, answer: what stands in a box, LaTeX or plain.
        algebra: compares what cannot be compared as it is written. What it raises comes through.
    """
    label, answer = normal_form(label), normal_form(answer)
    return bool(label) and bool(answer) and _same(label, answer, algebra)


def _same(label: str, answer: str, algebra: Algebra) -> bool:
    """Do what `equal` does for two texts in normal form."""
    label, answer = (_ANNOUNCED.sub("", _MEMBER.sub("", text)) for text in (label, answer))
    if _bare(label) == _bare(answer):
        return True
    if (letter := re.fullmatch(r"\(?([A-Z])\)?", _bare(label))) and (chosen := _choice(answer)):
        return chosen == letter[1]
    expected, given = elements(label), elements(answer)
    if len(set(expected)) == len(expected):  # the label has each value once, so that repeating one says nothing
        given = list(dict.fromkeys(given))
    if len(expected) != len(given):
        return False
    if len(expected) == 1 and not (is_set(label) or is_set(answer)):
        return _same_value(expected[0], given[0], algebra)
    return _same_in_any_order(expected, given, algebra)


def _same_in_any_order(expected: Sequence[str], given: Sequence[str], algebra: Algebra) -> bool:
    left = list(given)
    for value in expected:
        found = next((other for other in left if _same_value(value, other, algebra)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _same_value(label: str, answer: str, algebra: Algebra) -> bool:
    """Compare two values that are no lists."""
    label, answer = without_approximation(label), without_approximation(answer)
    matrices = rows(label), rows(answer)
    if matrices[0] and matrices[1]:
        return _same_matrix(matrices[0], matrices[1], algebra)
    pairs = [bracketed(text) or interval(text) for text in (label, answer)]
    if pairs[0] and pairs[1]:
        return _same_brackets(pairs[0], pairs[1], algebra)
    related = [relation(text) for text in (label, answer)]
    if related[0][1] or related[1][1]:
        return _same_relation((label, *related[0]), (answer, *related[1]), algebra)
    if pairs[0] or pairs[1]:
        return False
    return _same_scalar(label, answer, algebra)


def _same_matrix(expected: tuple[str, list[list[str]]], given: tuple[str, list[list[str]]], algebra: Algebra) -> bool:
    """Compare entry by entry. An entry need not be worked out further than the label's."""
    shapes = [(kind, [len(row) for row in lines]) for kind, lines in (expected, given)]
    return shapes[0] == shapes[1] and all(
        _same(a, b, algebra) or algebra(without_fonts(a), without_fonts(b))
        for expected_row, given_row in zip(expected[1], given[1], strict=True)
        for a, b in zip(expected_row, given_row, strict=True)
    )


def _same_brackets(expected: Bracketed, given: Bracketed, algebra: Algebra) -> bool:
    shapes = [(pair.opening, len(pair.items), pair.closing) for pair in (expected, given)]
    variables = {_bare(pair.variable) for pair in (expected, given) if pair.variable}
    return (
        shapes[0] == shapes[1]
        and len(variables) < 2
        and all(_same(a, b, algebra) for a, b in zip(expected.items, given.items, strict=True))
    )


def _same_relation(
    expected: tuple[str, list[str], list[str]], given: tuple[str, list[str], list[str]], algebra: Algebra
) -> bool:
    """Compare where at least one of both is an equation or an inequality: (text, sides, signs). What stands before the
    equals sign may be missing on one side, if it is a name or has been worked out."""
    (label, label_sides, label_signs), (answer, answer_sides, answer_signs) = expected, given
    if not set(label_signs) | set(answer_signs) <= {"=", "\\approx"}:
        return bool(label_signs and answer_signs) and algebra(without_fonts(label), without_fonts(answer))
    label_sides, answer_sides = (_name_first(sides) for sides in (label_sides, answer_sides))
    if not label_signs:
        return all(map(_introduces, answer_sides[:-1])) and _same(label, answer_sides[-1], algebra)
    if not answer_signs:
        return all(map(_introduces, label_sides[:-1])) and _same(label_sides[-1], answer, algebra)
    names = [_bare(sides[0]) for sides in (label_sides, answer_sides)]
    if names[0] == names[1]:
        return _same(label_sides[-1], answer_sides[-1], algebra)
    if len(label_sides) != 2 or len(answer_sides) != 2:
        return False
    return algebra(without_fonts(label), without_fonts(answer))


def _name_first(sides: list[str]) -> list[str]:
    """Return the sides of an equation so that its value stands last: "5 = x" is "x = 5"."""
    return sides[::-1] if re.fullmatch(r"[A-Za-z]", sides[-1]) and read_numeral(sides[0]) else sides


def _same_scalar(label: str, answer: str, algebra: Algebra) -> bool:
    """Compare two single values, with their units, or two texts."""
    expected, given = (read_quantity(without_brackets(text)) for text in (label, answer))
    if expected.contradicts(given):
        return False
    texts = [without_fonts(without_brackets(quantity.text)) for quantity in (expected, given)]
    if not all(texts) or _is_words(expected.text) or _is_words(given.text):
        return all(texts) and _folded(without_fonts(label)) == _folded(without_fonts(answer))
    if any(_CLOCK.match(text) for text in texts):
        clocks = [[part.strip().lstrip("0") for part in text.split(":")] for text in texts]
        return clocks[0] == clocks[1]
    if any(_IN_BASE.match(text) for text in texts):
        return _same_in_base(texts[0], texts[1])
    numbers = [read_numeral(text) for text in texts]
    must_be_whole = numbers[0] and numbers[0].is_whole and expected.is_percent == given.is_percent
    if must_be_whole and not (numbers[1] and numbers[1].is_whole):
        return False
    if numbers[0] and numbers[1]:
        return any(number.equals(numbers[1]) for number in _readings(numbers[0], expected, given))
    return algebra(texts[0], texts[1])


def _readings(number: Numeral, expected: Quantity, given: Quantity) -> list[Numeral]:
    """Return what a label may be where one of both is in percent: 50 % is 0.5, and where percent are asked for 50."""
    if expected.is_percent == given.is_percent:
        return [number]
    factor = Fraction(1, 100) if expected.is_percent else Fraction(100)
    return [number, Numeral(number.value * factor, number.slack * factor)]


def _same_in_base(label: str, answer: str) -> bool:
    """Compare digits; the base, written as an index, may be missing on one side."""
    found = [_IN_BASE.match(text) for text in (label, answer)]
    digits = [match[1] if match else text for match, text in zip(found, (label, answer), strict=True)]
    bases = {match[2] or match[3] for match in found if match}
    return digits[0].upper() == digits[1].upper() and len(bases) == 1


def _choice(text: str) -> str | None:
    """Return the letter of a choice that the text names and perhaps repeats: "C", "(C)", "(C) 12 m", "C. 12"."""
    text = _CALLED.sub("", without_fonts(text).strip())
    found = re.match(r"(?:\(([A-Z])\)|([A-Z])[.):])(?!\w)|([A-Z])$", text)
    return next(filter(None, found.groups())) if found else None


def _introduces(side: str) -> bool:
    """Whether what stands before an equals sign may be left out: a name, a product or sum of letters, a function, or numbers
    that were worked out. What mixes numbers and letters is an equation that is still to be solved."""
    side = re.sub(r" ?_ ?(?:\{[^{}]*\}|\w)", "", without_fonts(side))
    if re.match(r"^[A-Za-z\\]+ ?\(.*\)$", side) or not re.search(r"\d", side):
        return True
    return not re.search(r"[A-Za-z]", re.sub(r"\\[a-zA-Z]+", "", side))


def _is_words(text: str) -> bool:
    """Whether a text is words, not a product of letters: several letters in a text font, or more than three in a row."""
    plain = without_fonts(text)
    if not _WORDS.match(plain):
        return False
    return bool(
        _TEXT.search(text)
        or re.search(r"[^\W\d_]{4}", plain)
        or not plain.isascii()
        or plain.lower() in _WORDS_OF_MATHEMATICS
    )


def _folded(text: str) -> str:
    """Return words without capitals, blanks and punctuation."""
    return re.sub(r"[\W_]+", "", text).casefold()


def _bare(text: str) -> str:
    """Return a text without fonts and without blanks, but for those between digits."""
    return re.sub(r"(?<!\d) | (?!\d)", "", without_fonts(text))
