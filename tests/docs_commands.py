"""The commands in fenced `bash` blocks of README.md and docs/*.md, and what the page says of whether they run.

A marker stands in the line before a block; a block without one is run by tests/test_docs_commands.py.

    <!-- run by tests/test_x.py -->     another test runs it
    <!-- planned, not run: why -->      `slime check` takes the place of `slime train`
    <!-- not run: why -->               its options are looked up, no more
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN_TEST = "write-a-plugin.md"
"""A page whose blocks run in order, by tests/test_write_a_plugin.py."""

_BLOCK = re.compile(r"^```bash\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`(slime [a-z][^`\n]*)`")
_MARKER = re.compile(r"<!-- (?P<kind>run by|planned, not run:|not run:) (?P<rest>[^\n]+) -->")
_REDIRECTION = re.compile(r" [<>]+ ?[\w./-]+")

# Bash itself takes a block apart. Every command that it calls is written down instead of started.
_TAKE_APART = r"""
record() { local words; printf -v words '%s\037' "$@"; printf '%s\036' "$words" >&3; }
command_not_found_handle() { record "$@"; }
source() { :; }
PATH=/nowhere
"""


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        where: page and line.
        marker: its kind and what it says; None where the block is to be run.
        commands: the words of each command, in their order.
    """

    where: str
    marker: tuple[str, str] | None
    commands: list[list[str]]


def blocks() -> list[Block]:
    """All blocks of all pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text[: match.start()].rstrip().rpartition("\n")[2]
            marker = _MARKER.fullmatch(line)
            told = (marker["kind"], marker["rest"]) if marker else None
            if page.name == OWN_TEST:
                told = ("run by", "tests/test_write_a_plugin.py")
            where = f"{page.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1}"
            found.append(Block(where, told, commands_of(match["text"])))
    return found


def inline() -> list[tuple[str, list[str]]]:
    """Commands in the running text, `slime …`, each with its page."""
    found = []
    for page in PAGES:
        for match in _INLINE.finditer(_BLOCK.sub("", page.read_text(encoding="utf-8"))):
            found += [(str(page.relative_to(ROOT)), command) for command in commands_of(match[1])]
    return found


def commands_of(text: str) -> list[list[str]]:
    """The words of each command of a piece of bash, without ellipses and files that it reads or writes."""
    text = _REDIRECTION.sub("", text)
    read, write = os.pipe()
    try:
        done = subprocess.run(
            ["bash", "-c", f"exec 3>&{write}\n{_TAKE_APART}\n{text}"], pass_fds=[write], capture_output=True, text=True
        )
    finally:
        os.close(write)
    with os.fdopen(read, encoding="utf-8") as stream:
        recorded = stream.read()
    assert not done.stderr, f"bash does not understand this:\n{text}\n{done.stderr}"
    calls = [call.split("\037")[:-1] for call in recorded.split("\036")[:-1]]
    return [[word for word in call if word not in ("…", "...")] for call in calls]
