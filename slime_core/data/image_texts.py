"""Puts what stands for images into a rendered text, before it is tokenised. Called where prompts are read and by the loss-mask
generators of fine-tuning, so that a conversation has the same tokens in both. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate

from slime_core.contracts.data import ImageTexts
from slime_core.errors import DataError


def expanded(text: str, images: ImageTexts) -> tuple[str, Callable[[int], int]]:
    """Return a rendering with the texts of its images in the places of their placeholders, and what says where a position of it
    has gone.

    Raises:
        DataError: the rendering has more or fewer places than there are images; without file and row.
    """
    pieces = text.split(images.placeholder)
    if len(pieces) - 1 != len(images.texts):
        raise DataError(
            f"the conversation has {len(images.texts)} images, and the rendering of its chat template {len(pieces) - 1} times "
            f"{images.placeholder!r}, which stands for one: the template leaves images out, or a text spells it"
        )
    length = len(images.placeholder)
    starts = list(accumulate((len(piece) + length for piece in pieces[1:-1]), initial=len(pieces[0])))[
        : len(images.texts)
    ]
    grown = list(accumulate((len(own) - length for own in images.texts), initial=0))

    def moved(position: int) -> int:
        return position + grown[bisect_left(starts, position)]

    return "".join(piece + own for piece, own in zip(pieces, [*images.texts, ""], strict=True)), moved
