"""Puts what stands for images into a rendering with turns. Called by the loss-mask generators. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slime_core.contracts.data import ImageTexts
from slime_core.data.image_texts import expanded
from slime_rollout_sft.masks.spans import Turn


def with_images(text: str, turns: Sequence[Turn], images: ImageTexts | None) -> tuple[str, list[Turn]]:
    """Return a rendering with the texts of its images in the places of their placeholders, and the turns where they are in it.

    Raises:
        DataError: the rendering has more or fewer places than there are images.
    """
    if images is None:
        return text, list(turns)
    whole, moved = expanded(text, images)
    return whole, [replace(turn, start=moved(turn.start), end=moved(turn.end)) for turn in turns]
