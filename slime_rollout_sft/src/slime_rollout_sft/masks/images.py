"""Puts what stands for images into a rendering, before it is tokenised. Called by the loss-mask generators. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from slime_core.contracts.data import ImageTexts
from slime_core.errors import DataError
from slime_rollout_sft.masks.spans import Turn


def with_images(text: str, turns: Sequence[Turn], images: ImageTexts | None) -> tuple[str, list[Turn]]:
    """Return a rendering with the texts of its images in the places of their placeholders, and the turns where they are in it.

    Raises:
        DataError: the rendering has more or fewer places than there are images.
    """
    if images is None:
        return text, list(turns)
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

    whole = "".join(piece + own for piece, own in zip(pieces, [*images.texts, ""], strict=True))
    return whole, [replace(turn, start=moved(turn.start), end=moved(turn.end)) for turn in turns]
