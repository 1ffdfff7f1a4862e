"""`TextStream`: from tokens to text while they come, whole characters at a time and never beyond a stop string. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
"""What tokenizers write for bytes that are no character, or not yet one."""
LONGEST_CHARACTER = 8
"""Tokens that may be waited for until their bytes are a character. Characters have four bytes at most; what takes longer is none."""

LONGEST_SILENCE = 8
"""Tokens without text, such as special ones, that stay in the window; the earliest of more are forgotten."""


class TextStream:
    """Decodes tokens one by one. The pieces of text together are the text of all tokens, up to the first stop string.

    A tokenizer writes some tokens differently at the beginning of a text, and bytes of a character that is not complete as U+FFFD.
    So what is decoded is a window of the last tokens, and what is new in its text is handed out when that ends with a character.

    Args:
        decode: turns token ids into text.
        stop: texts that end the text. What may be the beginning of one is held back until it is known.

    Attributes:
        length: how many characters there are so far, those included that are held back.
        is_stopped: whether a stop string was met; nothing comes any more.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._tokens: list[int] = []  # of the window
        self._told = 0  # so many of them are in the text already
        self._held = ""
        self.length = 0
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Take the next token, and return what is certain of the text now."""
        if self.is_stopped:
            return ""
        self._tokens.append(token)
        text = self._new_text()
        if text.endswith(REPLACEMENT) and len(self._tokens) - self._told <= LONGEST_CHARACTER:
            return ""
        if text:
            self._tokens = self._tokens[self._told :]
            self._told = len(self._tokens)
        elif len(self._tokens) - self._told > LONGEST_SILENCE:
            del self._tokens[self._told]
        return self._released(text)

    def finish(self) -> str:
        """Return the rest of the text, as no more tokens come."""
        if self.is_stopped:
            return ""
        text = self._new_text()
        self._tokens, self._told = [], 0
        rest = self._released(text) + self._held
        self._held = ""
        return rest

    def _new_text(self) -> str:
        before = self._decode(self._tokens[: self._told]) if self._told else ""
        return self._decode(self._tokens)[len(before) :]

    def _released(self, new: str) -> str:
        """What may be handed out of what is held and what is new."""
        self.length += len(new)
        text = self._held + new
        ends = [found for stop in self._stop if (found := text.find(stop)) >= 0]
        if ends:
            self.is_stopped, self._held = True, ""
            self.length -= len(text) - min(ends)
            return text[: min(ends)]
        kept = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`, which is not in it as a whole."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
