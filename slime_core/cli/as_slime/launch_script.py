"""Reads from a launch script of slime, which is a bash script, the words that it hands to train.py.

Nothing of the script is run. Variables and arrays are assigned, files are read where `source` says so, and conditions are
decided where they compare what is known. Loops are passed over, and so is a branch whose condition only a running shell could
decide.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from slime_core.cli.as_slime.bash_words import UNKNOWN, Token, Value, expand, joined, tokens
from slime_core.errors import ArgumentError

_ASSIGNMENT = re.compile(r"(\w+)(\+?)=(.*)", re.DOTALL)
_ENDS_OF_LISTS = ("\n", ";", "&", ")", ";;")
_BLOCKS = {"if": "fi", "for": "done", "while": "done", "until": "done", "select": "done", "case": "esac", "{": "}"}


@dataclass(frozen=True)
class LaunchScript:
    """What a launch script starts.

    Attributes:
        command: "train" or "train-async".
        words: what it hands to train.py, where what is not known stands behind `bash_words.UNKNOWN`.
        remarks: what was passed over and may have set options.
    """

    command: str
    words: list[str]
    remarks: list[str]


def read_launch_script(path: Path) -> LaunchScript:
    """Read a launch script.

    Raises:
        ArgumentError: it cannot be read, or never calls train.py or train_async.py.
    """
    reader = _Reader(path)
    reader.read(path)
    if not reader.calls:
        raise ArgumentError(
            f"--as-slime: {path} calls neither train.py nor train_async.py. Give a bash script that does, or the words that it "
            "hands to it."
        )
    command, words = reader.calls[0]
    if len(reader.calls) > 1:
        reader.remarks.append(f"{path.name} calls train.py {len(reader.calls)} times; this is the first call.")
    return LaunchScript(command, words, list(dict.fromkeys(reader.remarks)))


class _Reader:
    def __init__(self, path: Path) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.remarks: list[str] = []
        self._folder = ""
        self._values: dict[str, Value] = {}
        self._left: list[Token] = []
        self._file = path.name
        self._being_read: set[Path] = set()

    def read(self, path: Path) -> None:
        """Read a whole file, as `source` does."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"--as-slime: the launch script {path} cannot be read: {error}.") from None
        outer = self._left, self._file, self._folder
        self._left, self._file, self._folder = tokens(text), path.name, os.path.abspath(path.parent)
        self._being_read.add(path.resolve())
        self._block((), live=True)
        self._being_read.discard(path.resolve())
        self._left, self._file, self._folder = outer

    def _block(self, ends: Collection[str], live: bool) -> str:
        """Read commands until one of these keywords, and return it; "" at the end of the file."""
        while self._left:
            first = self._left[0]
            if first.kind == "operator":
                self._left.pop(0)
            elif first.text in ends:
                return self._left.pop(0).text
            elif first.text == "if":
                self._if(live)
            elif first.text in _BLOCKS or self._defines_function():
                self._pass_over(live)
            else:
                self._list(live)
        return ""

    def _if(self, live: bool) -> None:
        taken, keyword = False, "if"
        self._left.pop(0)
        while keyword in ("if", "elif"):
            line, status = self._left[0].line, self._condition(live and not taken)
            before = list(self._left)
            keyword = self._block(("elif", "else", "fi"), live and not taken and status is True)
            if live and not taken and status is None:
                branch = before[: len(before) - len(self._left)]
                if any(token.kind == "array" or token.text.startswith("--") for token in branch):
                    self.remarks.append(
                        f"{self._file}, line {line}: whether this condition holds is known only when the script runs; the "
                        "options behind it are left out."
                    )
            taken = taken or status is True
        if keyword == "else":
            self._block(("fi",), live and not taken)

    def _condition(self, live: bool) -> bool | None:
        status: bool | None = None
        while self._left and self._left[0].text != "then":
            if self._left[0].kind == "operator":
                self._left.pop(0)
            else:
                status = self._list(live)
        if self._left:
            self._left.pop(0)
        return status

    def _defines_function(self) -> bool:
        following = [token.text for token in self._left[1:3]]
        return following == ["(", ")"] or self._left[0].text == "function"

    def _pass_over(self, live: bool) -> None:
        """Pass over a loop, a case, a function or a group. What it assigns is unknown from then on."""
        line, ends = self._left[0].line, list[str]()
        while self._left:
            token = self._left.pop(0)
            if token.text in _BLOCKS and token.kind == "word":
                ends.append(_BLOCKS[token.text])
            elif ends and token.text == ends[-1]:
                ends.pop()
                if not ends:
                    return
            elif live and token.kind == "array":
                self._forget(token.text, line)
            elif live and (assignment := _ASSIGNMENT.match(token.text)):
                self._values[assignment[1]] = f"{UNKNOWN}{assignment[1]}"
            elif live and re.search(r"(^|/)train(_async)?\.py$", token.text):
                self.remarks.append(
                    f"{self._file}, line {line}: a call of {token.text} in a loop or function is passed over."
                )

    def _forget(self, name: str, line: int) -> None:
        self._values[name] = [f"{UNKNOWN}{name}"]
        self.remarks.append(f"{self._file}, line {line}: what a loop or function puts into {name} is not known.")

    def _list(self, live: bool) -> bool | None:
        """Read commands joined by && and ||, and return whether the last that would run succeeds; None if that is unknown."""
        status: bool | None = None
        run = live
        while self._left:
            words: list[Token] = []
            while self._left and not (self._left[0].kind == "operator" and self._left[0].text != "("):
                words.append(self._left.pop(0))
            if run:
                status = self._command(words)
            joint = self._left[0].text if self._left else "\n"
            if joint in _ENDS_OF_LISTS:
                return status
            self._left.pop(0)
            if joint == "|":
                run, status = False, None
            else:
                run = live and status is not (joint == "||")
        return status

    def _command(self, words: list[Token]) -> bool | None:
        words = list(words)
        if words and words[0].text in ("export", "local", "declare", "readonly"):
            words = [word for word in words[1:] if not word.text.startswith("-")]
            if any(word.kind == "word" and "=" not in word.text for word in words):
                return True
        while words and self._assign(words[0]):
            words.pop(0)
        if not words:
            return True
        name, rest = words[0].text, [word.text for word in words[1:]]
        if name in ("[", "[[", "test"):
            return self._test([text for text in rest if text not in ("]", "]]")])
        if name == "!":
            status = self._command(words[1:])
            return None if status is None else not status
        if name in ("source", ".") and rest:
            self._source(rest[0], words[0].line)
            return True
        if name == "printf" and rest[:1] == ["-v"] and len(rest) > 1:
            self._values[rest[1]] = f"{UNKNOWN}{rest[1]}"
            return True
        expanded = [one for word in words for one in expand(word.text, self._values, self._folder)]
        for number, word in enumerate(expanded):
            if os.path.basename(word) in ("train.py", "train_async.py"):
                command = "train-async" if "async" in os.path.basename(word) else "train"
                self.calls.append((command, expanded[number + 1 :]))
                return True
        return None

    def _assign(self, token: Token) -> bool:
        if token.kind == "array":
            items = [one for item in token.items for one in expand(item, self._values, self._folder)]
            before = self._values.get(token.text, []) if token.appends else []
            self._values[token.text] = [*([before] if isinstance(before, str) else before), *items]
            return True
        assignment = _ASSIGNMENT.fullmatch(token.text)
        if assignment is None:
            return False
        value = joined(assignment[3], self._values, self._folder)
        before = self._values.get(assignment[1], "") if assignment[2] else ""
        self._values[assignment[1]] = before + value if isinstance(before, str) else [*before, value]
        return True

    def _source(self, word: str, line: int) -> None:
        given = joined(word, self._values, self._folder)
        found = None if UNKNOWN in given else _find_file(Path(given), Path(self._folder))
        if found is None:
            shown = given.replace(UNKNOWN, "$")
            self.remarks.append(f"{self._file}, line {line}: {shown} is not here, so what it sets is not known.")
        elif found.resolve() not in self._being_read:
            self.read(found)

    def _test(self, words: list[str]) -> bool | None:
        values = [joined(word, self._values, self._folder) for word in words]
        match values:
            case ["!", *inner]:
                status = self._test(words[1:]) if inner else None
                return None if status is None else not status
            case ["-z" | "-n" as flag, value]:  # a variable that is not set is empty
                if UNKNOWN in value and not re.fullmatch(rf"{UNKNOWN}(\w+|{{\w+}})", value):
                    return None
                return (not value.replace(UNKNOWN, "", 1) or UNKNOWN in value) == (flag == "-z")
            case ["-d" | "-f" | "-e" as flag, path] if UNKNOWN not in path:
                return {"-d": Path.is_dir, "-f": Path.is_file, "-e": Path.exists}[flag](Path(path))
            case [left, how, right]:
                if re.fullmatch(rf"{UNKNOWN}({{\w+}}|\w+)", left):
                    return None
                if UNKNOWN in left + right:
                    return None
                return _compared(left, how, right)
        return None


def _compared(left: str, how: str, right: str) -> bool | None:
    if how in ("=", "=="):
        return left == right
    if how == "!=":
        return left != right
    try:
        a, b = int(left), int(right)
    except ValueError:
        return None
    order = {"-eq": a == b, "-ne": a != b, "-lt": a < b, "-le": a <= b, "-gt": a > b, "-ge": a >= b}
    return order.get(how)


def _find_file(path: Path, folder: Path) -> Path | None:
    """The file itself or, as scripts name where slime is in its container, the one of the same last names near the script."""
    if path.is_file():
        return path
    for length in range(len(path.parts), 1, -1):
        tail = Path(*path.parts[-length:])
        for place in (folder, *folder.parents):
            if not tail.is_absolute() and (place / tail).is_file():
                return place / tail
    return None
