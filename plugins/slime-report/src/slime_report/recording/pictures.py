"""What a run keeps of the images of a recorded sample: small PNGs of all of them, and what an alarm is told by. Called by `recorder`.

Thumbnails are as large as the room for a sample allows: first up to `SIDES[0]` pixels, then less. Those that do not fit even at the
smallest size are left out, and counted by whoever shows the sample.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from slime_core.data.image_processor import Processor, image_places
from slime_core.data.images import decode, size_of
from slime_core.errors import DataError, SampleError, SlimeError
from slime_core.sample import Sample
from slime_core.token_arrays import num_tokens, token_ids
from slime_report.recording.rows import Kept

if TYPE_CHECKING:
    from PIL.Image import Image

SIDES = (96, 64, 40, 24)
"""Pixels of the longer side of a thumbnail."""
COLOURS = 64
"""How many colours a thumbnail has at most."""
ONE_COLOUR = 2
"""By how many levels of 255 the pixels of an image without content may differ, in every channel."""
_REMEMBERED = 32


@dataclass(frozen=True)
class Picture:
    """What is known of one image.

    Attributes:
        size: width and height in pixels.
        blank: whether all of its pixels have the same colour.
        pixels: identifies what it shows.
        small: a thumbnail of the largest size.
    """

    size: tuple[int, int]
    blank: bool
    pixels: str
    small: Image


def image_rows(sample: Sample, kept: Kept, processor: Processor | None, room: int) -> list[dict[str, Any]]:
    """Return what is kept of the images of a sample, as plain JSON data, in their order.

    Args:
        kept: which tokens of it are kept.
        processor: of the checkpoint, which knows the tokens of images; without one they are not told.
        room: bytes that the thumbnails may take.
    """
    pictures = [_picture(data) for data in sample.images]
    spans = _spans(sample, processor)
    small = _within(pictures, room)
    prompt = num_tokens(sample) - sample.response_length
    rows = []
    for number, (data, picture) in enumerate(zip(sample.images, pictures, strict=True)):
        row: dict[str, Any] = {"bytes": len(data), "png": small[number]}
        if picture is not None:
            row |= {"size": list(picture.size), "blank": picture.blank, "pixels": picture.pixels}
        if spans:
            row |= {"tokens": list(spans[number]), "pieces": kept.pieces(range(*spans[number]), prompt)}
        rows.append(row)
    return rows


@lru_cache(maxsize=_REMEMBERED)
def _picture(data: bytes) -> Picture | None:
    """Look at an image; None if it cannot be decoded. A few are remembered, since the samples of a group have the same ones."""
    try:
        size, image = size_of(data), decode(data, side=SIDES[0])
    except SlimeError:
        return None
    channels = [channel.getextrema() for channel in image.split()]
    blank = all(isinstance(high, int) and high - low <= ONE_COLOUR for low, high in channels)
    found = hashlib.sha256(repr(size).encode() + image.tobytes()).hexdigest()[:16]
    image.thumbnail((SIDES[0], SIDES[0]))
    return Picture((size.width, size.height), blank, found, image)


def _spans(sample: Sample, processor: Processor | None) -> list[tuple[int, int]]:
    """For every image its first token and the one behind its last; none where that is not known."""
    if processor is None:
        return []
    try:
        return image_places(
            sample.name, token_ids(sample), processor.token, processor.counts(sample.images, whole=False)
        )
    except (DataError, SampleError):  # a hook has given the sample other images than its tokens
        return []


def _within(pictures: Sequence[Picture | None], room: int) -> list[str | None]:
    """PNGs in base64 of the largest size at which all of them fit; of the smallest size those that do."""
    small: list[str | None] = []
    for side in SIDES:
        small, left = [], room
        for picture in pictures:
            png = None if picture is None else _png(picture.small, side)
            left -= len(png or "")
            if left < 0 and side != SIDES[-1]:
                break
            small.append(png if left >= 0 else None)
        else:
            break
    return small


def _png(image: Image, side: int) -> str:
    image = image.copy()
    image.thumbnail((side, side))
    if image.getcolors(COLOURS) is None:
        image = image.quantize(COLOURS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
