r"""One way to write mathematics: what stands in a box becomes plain LaTeX without decoration. Called by `equality`.

People and models write the same answer as `√2`, `$\sqrt2$` and `\sqrt{2}.`, or `1 000`, `1,000` and `1\,000`. Here fonts,
blanks, dollar signs, full stops and characters that are not ASCII go, or become the command for them. Nothing is computed,
nothing is imported but the standard library, and every pattern is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_SMALL = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu", "nu", "xi", "rho"),
    *("sigma", "tau", "phi", "chi", "psi", "omega"),
)
_CAPITAL = ("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega")
_CHARACTERS = {
    "−": "-",
    "–": "-",
    "‐": "-",
    "‑": "-",
    "﹣": "-",
    "×": r"\times ",
    "✕": r"\times ",
    "·": r"\cdot ",
    "∙": r"\cdot ",
    "⋅": r"\cdot ",
    "÷": r"\div ",
    "±": r"\pm ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "∅": r"\emptyset ",
    "Ø": r"\emptyset ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    **dict.fromkeys("≈≃≒≐", r"\approx "),
    "≅": r"\cong ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∖": r"\setminus ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "⟨": "(",
    "⟩": ")",
    "，": ",",
    "。": ".",
    "；": ";",
    "：": ":",
    "（": "(",
    "）": ")",
    "［": "[",
    "］": "]",
    "｛": r"\{",
    "｝": r"\}",
    "％": "%",
    "＝": "=",
    "、": ",",
    "＋": "+",
    "－": "-",
    "＜": "<",
    "＞": ">",
    "．": ".",
    "“": "",
    "”": "",
    "…": r"\ldots ",
    "′": "'",
    "‘": "",
    "∶": ":",
    **{letter: f"\\{name} " for letter, name in zip("αβγδεζηθκλμνξρστφχψω", _SMALL, strict=True)},
    **{letter: f"\\{name} " for letter, name in zip("ΓΔΘΛΞΠΣΦΨΩ", _CAPITAL, strict=True)},
    **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    **{chr(0xFF21 + letter): chr(0x41 + letter) for letter in range(26)},
    **{chr(0xFF41 + letter): chr(0x61 + letter) for letter in range(26)},
    **dict.fromkeys("\u00a0\u2009\u200a\u202f\u2002\u2003\u3000\t\n\r", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u2061\u2062", ""),
}
_TABLE = str.maketrans(_CHARACTERS)
_FRACTIONS = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅕": "1/5",
    "⅖": "2/5",
    "⅗": "3/5",
    "⅘": "4/5",
}
_FRACTIONS |= {
    "⅙": "1/6",
    "⅚": "5/6",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
    "⅞": "7/8",
    "⅐": "1/7",
    "⅑": "1/9",
    "⅒": "1/10",
}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

FONTS = "text|textbf|textit|textrm|textsf|texttt|textnormal|mathrm|mathbf|mathit|mathsf|mathtt|mathnormal|mbox|emph|bm|boldsymbol|operatorname|bold|rm|hbox|fbox|boxed"
"""Commands that change how their argument looks, not what it is."""

_REPLACED: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\\\\(?=[a-zA-Z]{2})(?!.*\\end)"), r"\\"),  # a backslash escaped once too often, in no matrix
    (re.compile(r"(?<!\\)\\[()\[\]]"), ""),
    (
        re.compile(
            r"\\(?:displaystyle|textstyle|scriptstyle|limits|bf|it|sf|large|Large|huge|left\.|right\.)(?![a-zA-Z])"
        ),
        " ",
    ),
    (re.compile(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|big|Big|bigg|Bigg)(?![a-zA-Z])\s*"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"(\d),?\\!\s*,?(?=\d)"), r"\1,"),
    (re.compile(r"(\d)\{,\}\s*(?=\d)"), r"\1,"),
    (re.compile(r"(?<!\\)\\[,;:! ]|~|\\(?:q?quad|thinspace|enspace|hspace\{[^{}]*\}|space)(?![a-zA-Z])"), " "),
    (re.compile(r"\\(?:varnothing|O)(?![a-zA-Z])|\\\{\s*\\\}|\\emptyset"), r"\\emptyset "),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\mathbb ([A-Z])"), r"\\mathbb{\1}"),
    (re.compile(r"\\langle(?![a-zA-Z])"), "("),
    (re.compile(r"\\rangle(?![a-zA-Z])"), ")"),
    (re.compile(r"\\(?:leq|leqslant|leqq)(?![a-zA-Z])|<="), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant|geqq)(?![a-zA-Z])|>="), r"\\ge "),
    (re.compile(r"\\(?:neq)(?![a-zA-Z])|!="), r"\\ne "),
    (re.compile(r"\\(?:lt)(?![a-zA-Z])"), "<"),
    (re.compile(r"\\(?:gt)(?![a-zA-Z])"), ">"),
    (re.compile(r"\\(?:simeq|thickapprox|approxeq|doteq|fallingdotseq)(?![a-zA-Z])"), r"\\approx "),
    (re.compile(r"\\cong(?= ?[-+]? ?[\d.])"), r"\\approx "),  # else of triangles
    (re.compile(r"\\(?:lvert|rvert|vert|mid)(?![a-zA-Z])"), "|"),
    (re.compile(r"\\(?:ast|star)(?![a-zA-Z])|\*\*?"), lambda found: "^" if found[0] == "**" else r"\cdot "),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![a-zA-Z])"), r"^\\circ "),
    (re.compile(r"\\(?:iota)(?![a-zA-Z])"), "i"),
    (re.compile(r"\\(?:phantom|vphantom|hphantom|label|tag)\*?\{[^{}]*\}"), ""),
    (re.compile(r"\\(?:dots|cdots|ldots|dotsc)(?![a-zA-Z])|\.{3,}"), r"\\ldots "),
    (re.compile(r"√\s*\("), r"√("),
    (re.compile(r"√\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"√\s*\{"), r"\\sqrt{"),
    (re.compile(r"√\s*(\d+(?:\.\d+)?|[a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![a-zA-Z\\])sqrt\s*(?=\{|\d)"), r"\\sqrt"),
    (re.compile(r"\\sqrt\s+(?=\w)|\\sqrt(?=\d)"), r"\\sqrt "),
    (re.compile(r"\\sqrt ([a-zA-Z]|\d)"), r"\\sqrt{\1}"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"\\frac\s*\{([^{}]*)\}\s*(\d)(?!\d)"), r"\\frac{\1}{\2}"),
    (
        re.compile(r"(?<![a-zA-Z\\])(pi|infinity|alpha|beta|theta)(?![a-zA-Z])"),
        lambda found: {"infinity": "\\infty "}.get(found[0], f"\\{found[0]} "),
    ),
    (
        re.compile(
            r"(?<![a-zA-Z\\{])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp|gcd|lcm|max|min)(?=\s*[(\d\\^_])"
        ),
        r"\\\1 ",
    ),
]
_FONT = re.compile(rf"\\(?:{FONTS})\s*\{{([^{{}}]*)\}}")
_ENDS = re.compile(r"^[\s=:]+|[\s.,;:?]+$")


def normal_form(text: str) -> str:
    """Return the text in plain LaTeX. Fonts are still there: `without_fonts` takes them away, once nothing asks any more
    whether something was text."""
    if not text.isascii():
        text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ]+", lambda found: f"^{{{found[0].translate(_RAISED)}}}", text)
        text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda found: f"_{{{found[0].translate(_LOWERED)}}}", text)
        text = re.sub("[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒]", lambda found: f" {_FRACTIONS[found[0]]}", text)
        text = text.translate(_TABLE)
    text = re.sub(r"(?<!\\)\$", "", text).replace("\n", " ")
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = re.sub(r" {2,}", " ", text)
    text = re.sub(r"^\*\*|\*\*$|^__|__$", "", text.strip())
    stripped = None
    while stripped != text:
        stripped, text = text, _ENDS.sub("", text)
    while _braced(text):
        text = text[1:-1].strip()
    return text


def without_fonts(text: str) -> str:
    """Return a text in normal form without commands such as `\\text`, their argument in their place."""
    before = None
    while before != text:
        before, text = text, _FONT.sub(lambda found: f" {found[1]} " if " " in found[1] else found[1], text)
    return re.sub(r" {2,}", " ", text).strip()


def _braced(text: str) -> bool:
    """Say whether one pair of braces holds all of the text."""
    if not (text.startswith("{") and text.endswith("}")):
        return False
    depth = 0
    for position, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return position == len(text) - 1
    return False
