"""What a person types and sees: lines with their history, and text of a model that cannot move the cursor."""

from __future__ import annotations

import sys
from contextlib import suppress

from slime_core.display import named_if_unseen, told
from slime_core.errors import ArgumentError


def shown(text: str) -> str:
    """The text of a model as it may be printed: what a terminal would obey or hide is named. Line ends and tabs stay."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if c in "\n\t" else named_if_unseen(c) for c in text)


def write(text: str) -> None:
    """Print what is new of an answer, at once."""
    sys.stdout.write(
        shown(text).encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8")
    )
    sys.stdout.flush()


def remark(text: str) -> None:
    """Say something that is no answer, on standard error."""
    sys.stdout.flush()
    print(told(text), file=sys.stderr, flush=True)


def ask() -> str:
    """A line that a person types. A line that ends with a backslash goes on in the next one.

    Raises:
        EOFError: there will be none.
        KeyboardInterrupt: Ctrl-C.
    """
    with suppress(ImportError):
        import readline  # noqa: F401  # gives `input` its history and its keys
    lines = [input("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input(". "))
    return "\n".join(lines)


def is_a_person_there() -> bool:
    """Whether standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()  # it is None where a program was started without


def piped() -> str:
    """All of standard input as text.

    Raises:
        ArgumentError: it is not UTF-8.
    """
    if sys.stdin is None:
        return ""
    if not hasattr(sys.stdin, "buffer"):  # whoever calls slime from Python may have put text in its place
        return sys.stdin.read().removeprefix("\ufeff").rstrip("\r\n")
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"Standard input is not valid UTF-8 at byte {error.start}.") from None
