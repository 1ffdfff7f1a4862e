"""Images of rows that are converted: they are read, counted against their places, and written so that they are found from the
output's folder. Called by `slime_core.data.convert`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_core.data.image_rows import take_images
from slime_core.data.images import NO_RULES, ImageRules, data_url, encoded


@dataclass(frozen=True)
class ConvertedImages:
    """What becomes of the images of a row.

    Attributes:
        folder: where the output is written.
        column: the images of the row, one or a list; None: `<image>` in a text is text.
        rules: where images may come from.
    """

    folder: Path
    column: str | None = None
    rules: ImageRules = NO_RULES

    def placed(self, made: dict[str, Any], row: dict[str, Any], source: Path) -> tuple[dict[str, Any], list[bytes]]:
        """Return the converted row with images that are found from the output's folder, and their encoded bytes.

        A path that leads from there to the same file stays; any other image becomes a data URL. With a column of images all of
        them are in it, in the order of their places, else each is in its part.

        Args:
            made: with `messages`.
            row: as it was before.
            source: the file of the row.

        Raises:
            DataError: an image cannot be read, or there are more or fewer images than places; without file and row.
        """
        given = None if self.column is None else row.get(self.column)
        column = None if self.column is None else [] if given is None else given if isinstance(given, list) else [given]
        written = list[str]()

        def read(value: Any) -> bytes:
            data = encoded(value, source.parent, self.rules)
            written.append(self._written(value, data))
            return data

        if not isinstance(made["messages"], list):
            return made, []
        messages, images = take_images(made["messages"], column, read)
        if not images:
            return made, []
        if self.column is not None:
            kept = [
                old if isinstance(old, dict) and isinstance(old.get("content"), str) else new
                for old, new in zip(made["messages"], messages, strict=True)
            ]
            return {**made, "messages": kept, self.column: written}, images
        waiting = iter(written)
        return {**made, "messages": [_filled(message, waiting) for message in messages]}, images

    def _written(self, value: Any, data: bytes) -> str:
        path = value.get("path", value.get("image")) if isinstance(value, dict) and not value.get("bytes") else value
        try:
            if isinstance(path, str) and len(path) < 4096 and encoded(path, self.folder, NO_RULES) == data:
                return path
        except Exception:  # it is none, or leads elsewhere
            pass
        return data_url(data)


def _filled(message: Any, images: Iterator[str]) -> Any:
    """Return a message each of whose places has its image."""
    if not (isinstance(message, dict) and isinstance(message.get("content"), list)):
        return message
    content = [
        {"type": "image", "image": next(images)} if part == {"type": "image"} else part for part in message["content"]
    ]
    return {**message, "content": content}
