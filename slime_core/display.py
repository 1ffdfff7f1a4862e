"""What is told to a person: without secrets, and with everything visible that a terminal would obey or hide.

Rows, file names and what services answer end up in messages. A control character among them could move the cursor, change colours
or hide a line, and marks of direction could make a name look like another.

    named_if_unseen(character)  one character
    told(text)                  a message of any number of lines
    tell_plainly()              the same for the log messages of this process, and no progress bars of libraries
    log_to_stderr()             shows the log messages of this process
    escape_on_stdout()          no character of a message is too much for the encoding of stdout
"""

from __future__ import annotations

import logging
import os
import sys
from io import TextIOWrapper
from typing import Any
from unicodedata import category

from slime_core.secrets import masked

UNSEEN = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
"""Categories of characters without a shape: controls, marks of direction and joiners, private use, halves of surrogate pairs,
separators of lines."""

BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters that are drawn as nothing although their category is that of a letter or a symbol: fillers of Hangul, the empty
pattern of Braille, joiners of graphemes."""


def named_if_unseen(character: str) -> str:
    """Return a character, or `[U+202E]` where it has no shape."""
    return f"[U+{ord(character):04X}]" if category(character) in UNSEEN or character in BLANK else character


def told(text: str) -> str:
    """Return a message as it may be printed. Line ends and tabs stay."""
    text = masked(text)
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if c in "\n\t" else named_if_unseen(c) for c in text)


_record = logging.getLogRecordFactory()


def tell_plainly() -> None:
    """Let `told` make the log messages of slime and of its plugins, in this process, and let libraries draw no progress bars: of
    several processes they overwrite each other, and in a file they are noise. HF_HUB_DISABLE_PROGRESS_BARS=0 brings those of
    transformers back. Processes that this one starts inherit that."""
    logging.setLogRecordFactory(_plain_record)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def log_to_stderr() -> None:
    """Show the log messages of this process on stderr: warnings of everybody with who warns, and what the core tells besides as plain
    lines, for that nothing is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("slime_core").setLevel(logging.INFO)


def escape_on_stdout() -> None:
    """Let stdout show what its encoding lacks, such as an ellipsis in ASCII, as an escape (`\\u2026`), as stderr does anyway."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class _Lines(logging.Formatter):
    """Puts level and name of the logger before warnings and errors alone."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record) if record.levelno > logging.INFO else record.getMessage()


def _plain_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = _record(*args, **kwargs)
    if record.name.startswith("slime"):
        record.msg, record.args = told(record.getMessage()), ()
    return record
