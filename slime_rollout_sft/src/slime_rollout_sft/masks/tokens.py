"""Tokenises a rendering and finds the tokens of its turns. Called by the loss-mask generators.

A token is trained when it *begins* inside a turn. A token that begins before a turn and reaches into it is not: the
model cannot be asked to generate a token whose beginning it has been given. One that reaches out of the end is.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from slime_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = list[tuple[int, int]]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], Offsets]:
    """Return the N token ids of `text`, and the characters (start, end) that each stands for.

    The offsets leave no gap, also where the tokenizer itself counts leading spaces out of a token. The tokens of one
    character that takes several (an emoji) all have that character's position.

    Raises:
        DataError: the tokenizer is one that cannot tell positions.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"the tokenizer is a {type(tokenizer).__name__}, which cannot tell which characters a token stands for; "
            "use the model's fast tokenizer (tokenizer.json)."
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets: Offsets = []
    previous_end = 0
    for start, end in encoded["offset_mapping"]:
        offsets.append((min(start, previous_end), end))
        previous_end = max(previous_end, end)
    return encoded["input_ids"], offsets


def tokens_between(offsets: Offsets, start: int, end: int) -> range:
    """Return the tokens that begin at characters `start` to `end - 1`."""
    first = bisect_left(offsets, start, key=lambda offset: offset[0])
    return range(first, bisect_left(offsets, end, lo=first, key=lambda offset: offset[0]))


def straddles(offsets: Offsets, position: int) -> bool:
    """Whether a token begins before `position` and ends after it."""
    before = bisect_left(offsets, position, key=lambda offset: offset[0]) - 1
    return before >= 0 and offsets[before][1] > position


def encoding_problem(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> str | None:
    """Say what is lost on the way from text to tokens and back; None if nothing is."""
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        return (
            f"{ids.count(tokenizer.unk_token_id)} tokens are {tokenizer.unk_token}: their text is not in the vocabulary"
        )
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if decoded != text and tokenizer(decoded, add_special_tokens=False, verbose=False)["input_ids"] != ids:
        return "the decoded tokens give other tokens when they are encoded again"
    return None
