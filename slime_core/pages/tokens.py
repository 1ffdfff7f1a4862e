"""The tokens of a token strip. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from slime_core.display import named_if_unseen

_VISIBLE = {"\n": "↵\n", "\r": "␍", "\t": "⇥\t", "\u00a0": "⍽", "\u200b": "[ZWSP]", "\ufeff": "[BOM]"}


@dataclass(frozen=True)
class PageToken:
    """One token of a token strip.

    Attributes:
        text: what the token stands for, made visible.
        token_id: its id in the vocabulary.
        trained: whether it is trained.
        special: whether it is one of the tokenizer's special tokens.
    """

    text: str
    token_id: int
    trained: bool
    special: bool


def visible(text: str) -> str:
    """Return text with line ends, tabs, controls and whatever else has no width or turns text around made visible."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if (name := _VISIBLE.get(character)) is not None:
        return name
    return named_if_unseen(character)
