"""Reads the words of a bash script, and expands them as bash would, without running anything.

What only a running shell could know stays in the text behind the mark `UNKNOWN`, such as the output of a command. Called by
`launch_script`.
"""

from __future__ import annotations

import ast
import operator
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Value = str | list[str]
UNKNOWN = "\ue000"
"""Stands in front of what cannot be known, in place of its dollar sign."""

_OPERATORS = ("&&", "||", ";;", "&>>", "&>", ">>", ">&", "<&", "<<<", "<<", ";", "&", "|", "<", ">", "(", ")", "\n")
_REDIRECTS = ("&>>", "&>", ">>", ">&", "<&", "<<<", "<", ">")
_ARRAY = re.compile(r"(\w+)(\+?)=\(")


@dataclass(frozen=True)
class Token:
    """A word as it stands in the script, an operator, or the assignment of an array.

    Attributes:
        text: the word with its quotes; the operator; the name of the array.
        line: in the script, from 1.
        kind: what it is.
        items: of an array.
        appends: the items go behind those that the array has.
    """

    text: str
    line: int
    kind: str = "word"
    items: list[str] = field(default_factory=list)
    appends: bool = False


def tokens(text: str) -> list[Token]:
    """Take a script apart. Comments, redirections and here-documents are left out."""
    found: list[Token] = []
    here_documents: list[str] = []
    position, redirected = 0, False
    while position < len(text):
        line = text.count("\n", 0, position) + 1
        if text.startswith("\\\n", position):
            position += 2
        elif text[position] in " \t":
            position += 1
        elif text[position] == "#":
            position = _find(text, "\n", position)
        elif operator_ := next((o for o in _OPERATORS if text.startswith(o, position)), None):
            position += len(operator_)
            if operator_ == "<<":
                position += text.startswith("-", position)
                end = _end_of_word(text, position + len(re.match(r" *", text[position:])[0]))  # type: ignore[index]  # always matches
                here_documents.append(text[position:end].strip(" '\"\\"))
                position = end
            elif operator_ in _REDIRECTS:
                redirected = True
                if found and found[-1].text.isdigit() and text[position - len(operator_) - 1].isdigit():
                    found.pop()  # the 2 of 2>
            else:
                found.append(Token(operator_, line, "operator"))
                if operator_ == "\n" and here_documents:
                    for name in here_documents:
                        end_mark = re.compile(rf"^\t*{re.escape(name)}$", re.MULTILINE).search(text, position)
                        position = end_mark.end() if end_mark else len(text)
                    here_documents = []
        elif array := _ARRAY.match(text, position):
            end = _closing(text, array.end() - 1)
            items = [token.text for token in tokens(text[array.end() : end - 1]) if token.kind == "word"]
            found.append(Token(array[1], line, "array", items, bool(array[2])))
            position = end
        else:
            end = _end_of_word(text, position)
            if not redirected:
                found.append(Token(text[position:end], line))
            redirected, position = False, end
    return [*found, Token("\n", text.count("\n") + 1, "operator")]


def expand(word: str, values: Mapping[str, Value], folder: str, split: bool = True) -> list[str]:
    """Return what a word becomes: no word, one, or several, as an array does.

    Args:
        values: of the variables that are known.
        folder: of the script, for what asks where it is.
        split: what stands without quotes is split at white space, as it is among the words of a command.
    """
    made: list[str | None] = [None]  # None: a word that nothing has been put into

    def put(text: str) -> None:
        made[-1] = (made[-1] or "") + text

    def put_words(words: list[str]) -> None:
        for number, one in enumerate(words):
            if number:
                made.append(None)
            put(one)

    def loose(text: str) -> None:
        """Put what an expansion without quotes became."""
        if not split or UNKNOWN in text:
            put(text)
        else:
            put_words(re.split(r"\s+", text) if text else [])

    position, quoted = 0, False
    while position < len(word):
        char = word[position]
        if char == '"':
            quoted = not quoted
            put("")
            position += 1
        elif char == "'" and not quoted:
            end = _find(word, "'", position + 1)
            put(word[position + 1 : end])
            position = end + 1
        elif char == "\\" and position + 1 < len(word):
            following = word[position + 1]
            put(("\\" if quoted and following not in '$`"\\\n' else "") + following.replace("\n", ""))
            position += 2
        elif char in "$`":
            end = _closing_of_expansion(word, position)
            inner = _expansion(word[position:end], values, folder)
            if isinstance(inner, list):
                if quoted or not split:
                    put_words(inner)
                else:
                    put_words([part for one in inner for part in one.split()])
            else:
                put(inner) if quoted else loose(inner)
            position = end
        else:
            put(char)
            position += 1
    return [one for one in made if one is not None]


def joined(word: str, values: Mapping[str, Value], folder: str) -> str:
    """What a word becomes where it is the value of a variable."""
    return " ".join(expand(word, values, folder, split=False))


def _expansion(text: str, values: Mapping[str, Value], folder: str) -> Value:
    """What stands for `$…` or a command between backticks: text, or the items of an array."""
    if text.startswith("$(("):
        return _calculated(text[3:-2], values, folder)
    if text.startswith(("$(", "`")):
        return _output(text[2:-1] if text[0] == "$" else text[1:-1], values, folder)
    name = text[2:-1] if text.startswith("${") else text[1:]
    if not name:
        return "$"
    if name.startswith("BASH_SOURCE") or name == "0":
        return f"{folder}/script"
    parts = re.fullmatch(r"(\w+|[@*#?!$])(\[[@*]\])?(?:(:?[-=+])(.*))?", name, re.DOTALL)
    if parts is None:
        return UNKNOWN + text[1:]
    value: Value | None = values.get(parts[1], os.environ.get(parts[1]))
    how, other = parts[3] or "", parts[4] or ""
    if how.endswith("+"):
        return joined(other, values, folder) if value else ""
    if how and (value is None or (not value and how.startswith(":"))):
        return joined(other, values, folder)
    if value is None:
        return [] if parts[2] else UNKNOWN + text[1:]
    return value if isinstance(value, str) or parts[2] else (value[0] if value else "")


def _output(command: str, values: Mapping[str, Value], folder: str) -> str:
    """What a command prints that only names folders or numbers; any other is unknown."""
    words = [token.text for token in tokens(command) if token.kind == "word" or token.text in ("&&", ";", "|")]
    plain = [word for word in words if word not in ("--", "-")]

    def argument(number: int) -> str:
        return joined(plain[number], values, folder)

    if plain[:1] == ["cd"] and plain[2:] in (["&&", "pwd"], [";", "pwd"]):
        return os.path.normpath(argument(1))
    if plain == ["pwd"]:
        return os.getcwd()
    if plain[:1] == ["dirname"] and len(plain) == 2:
        return os.path.dirname(argument(1))
    if plain[:1] == ["basename"] and len(plain) == 2:
        return os.path.basename(argument(1))
    if plain[:1] == ["seq"] and 2 <= len(plain) <= 4:
        try:
            numbers = [int(argument(n)) for n in range(1, len(plain))]
        except ValueError:
            return f"{UNKNOWN}({command})"
        first, step = (numbers[0] if len(numbers) > 1 else 1), (numbers[1] if len(numbers) > 2 else 1)
        return "\n".join(map(str, range(first, numbers[-1] + 1, step))) if step > 0 else ""
    return f"{UNKNOWN}({command})"


_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Mod: operator.mod,
}


def _calculated(text: str, values: Mapping[str, Value], folder: str) -> str:
    """The value of an arithmetic expression of whole numbers."""

    def value_of(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return int(joined(f"${{{node.id}}}", values, folder))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value_of(node.operand)
        if isinstance(node, ast.BinOp):
            left, right = value_of(node.left), value_of(node.right)
            if isinstance(node.op, (ast.Div, ast.FloorDiv)):
                return int(left / right)
            return _ARITHMETIC[type(node.op)](left, right)
        raise ValueError

    try:
        return str(value_of(ast.parse(joined(f'"{text.strip()}"', values, folder), mode="eval").body))
    except (ValueError, SyntaxError, KeyError, ZeroDivisionError):
        return f"{UNKNOWN}(({text}))"


def _end_of_word(text: str, position: int) -> int:
    while position < len(text):
        char = text[position]
        if char in " \t\n;&|<>()":
            return position
        if char == "\\":
            position += 2
        elif char == "'":
            position = _find(text, "'", position + 1) + 1
        elif char == '"':
            position = _end_of_quotes(text, position)
        elif char in "$`":
            position = _closing_of_expansion(text, position)
        else:
            position += 1
    return min(position, len(text))


def _end_of_quotes(text: str, position: int) -> int:
    position += 1
    while position < len(text) and text[position] != '"':
        if text[position] == "\\":
            position += 2
        elif text[position] in "$`":
            position = _closing_of_expansion(text, position)
        else:
            position += 1
    return min(position + 1, len(text))


def _closing_of_expansion(text: str, position: int) -> int:
    if text[position] == "`":
        return min(_find(text, "`", position + 1) + 1, len(text))
    if text[position + 1 : position + 2] in ("(", "{"):
        return _closing(text, position + 1)
    name = re.compile(r"\w+|[@*#?!$]").match(text, position + 1)
    return name.end() if name else position + 1


def _closing(text: str, position: int) -> int:
    """The position behind the bracket that closes the one here."""
    opening = text[position]
    closing = {"(": ")", "{": "}"}[opening]
    depth = 0
    while position < len(text):
        char = text[position]
        if char == "\\":
            position += 2
            continue
        if char == "'" and opening == "(":
            position = _find(text, "'", position + 1)
        elif char == '"':
            position = _end_of_quotes(text, position) - 1
        elif char == "#" and opening == "(" and text[position - 1] in " \t\n(":
            position = _find(text, "\n", position) - 1
        depth += (char == opening) - (char == closing)
        position += 1
        if depth == 0:
            return position
    return len(text)


def _find(text: str, what: str, position: int) -> int:
    found = text.find(what, position)
    return len(text) if found < 0 else found
