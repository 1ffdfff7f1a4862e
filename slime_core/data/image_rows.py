"""Takes the images out of the messages of a row, so that these are plain text and marks of places, `{"type": "image"}`.

Two forms are read: typed content parts, `{"type": "image", "image": …}`, and the placeholder `<image>` in text with a column of
images (`--multimodal-keys`). An image part that does not say which image takes the next one of the column too. Called where rows
become samples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from slime_core.data.shown import shown
from slime_core.errors import DataError

PLACEHOLDER = "<image>"
IMAGE_PARTS = ("image", "image_url", "input_image")
"""Types of content parts that hold an image."""

_AROUND = re.compile(f"({re.escape(PLACEHOLDER)})")

_NOTHING: Any = object()  # which an image is not

Read = Callable[[Any], bytes]


def take_images(messages: list[Any], column: list[Any] | None, read: Read) -> tuple[list[Any], list[bytes]]:
    """Return the messages with `{"type": "image"}` where an image is, and the encoded images in the order of these places.

    What is no message is left as it is.

    Args:
        column: the images of the row; None where no column of images is read, so that `<image>` is text.
        read: gives the encoded bytes of an image.

    Raises:
        DataError: an image cannot be read, stands in an answer, or there are more or fewer images than places; without file and
            row.
    """
    images, places = list[bytes](), 0
    waiting: Iterator[tuple[int | None, Any]] = iter(enumerate(column or ()))
    taken: list[Any] = []
    for number, message in enumerate(messages, 1):
        parts = _parts(message, column is not None) if isinstance(message, dict) else None
        if parts is None:
            taken.append(message)
            continue
        made = []
        for part in parts:
            if not (isinstance(part, dict) and part.get("type") in IMAGE_PARTS):
                made.append(part)
                continue
            if message.get("role") == "assistant":
                raise DataError(
                    f"message {number} (assistant) has an image, and the model answers in text; only what it is given can have one"
                )
            places += 1
            value = _said(part)
            if not value:
                number_in_column, value = next(waiting, (None, _NOTHING))
                if value is _NOTHING:
                    raise DataError(_mismatch(messages, column))
                if part.get("index") not in (None, number_in_column):
                    raise DataError(
                        f"image {places}: its part has 'index' {shown(part['index'])}, expected {number_in_column}: images take their "
                        "places in the order of their column, counted from 0; order the column so, and repeat what is shown again"
                    )
            try:
                images.append(read(value))
            except DataError as error:
                raise DataError(f"image {places}: {error}") from None
            made.append({"type": "image"})
        taken.append({**message, "content": made})
    if any(True for _ in waiting):
        raise DataError(_mismatch(messages, column))
    return taken, images


def count_places(messages: list[Any], placeholders: bool) -> int:
    """Return how many places for images the messages of a row have.

    Args:
        placeholders: whether `<image>` in text is one.
    """
    return sum(
        isinstance(part, dict) and part.get("type") in IMAGE_PARTS
        for message in messages
        if isinstance(message, dict)
        for part in _parts(message, placeholders) or ()
    )


def _said(part: dict[str, Any]) -> Any:
    """Return what an image part says of its image; {} for one that takes the next of the column, such as datasets write whose parts
    all have the same keys: {"type": "image", "index": 0, "text": null}."""
    said = {key: value for key, value in part.items() if key not in ("type", "index") and value is not None}
    return {} if said == {"text": ""} else said


def _parts(message: dict[str, Any], placeholders: bool) -> list[Any] | None:
    """Return the content of a message in parts; None where it has no image."""
    content = message.get("content")
    if isinstance(content, str):
        return list(_split(content)) if placeholders and PLACEHOLDER in content else None
    if isinstance(content, list) and any(isinstance(p, dict) and p.get("type") in IMAGE_PARTS for p in content):
        return content
    return None


def _split(text: str) -> Iterator[dict[str, str]]:
    for piece in _AROUND.split(text):
        if piece == PLACEHOLDER:
            yield {"type": "image"}
        elif piece:
            yield {"type": "text", "text": piece}


def _mismatch(messages: list[Any], column: list[Any] | None) -> str:
    places = count_places(messages, column is not None)
    if column is None:
        return (
            f"the messages have {places} image parts, and not all of them say which image; name the column of images with "
            '--multimodal-keys \'{"image": "images"}\''
        )
    return (
        f"the row has {len(column)} images, but its messages have {places} places for images; every image has one place, "
        f'{PLACEHOLDER} in content that is one text, or {{"type": "image"}} among the parts of content, whose texts are not searched'
    )
