"""What the preview says and shows of the images of a row. Called by `preview`."""

from __future__ import annotations

import base64
import io

from slime_core.contracts.data import MaskedTokens
from slime_core.data.images import decode
from slime_core.errors import DataError
from slime_rollout_sft.lint import Looked

_SIDE = 160


def image_lines(looked: Looked, masked: MaskedTokens) -> list[str]:
    """Return a line for each image: its size, and which tokens stand for it. Tokens are counted from 1."""
    lines = []
    for number, data in enumerate(looked.images, 1):
        try:
            width, height = decode(data).size
        except DataError as error:
            lines.append(f"image {number}: {error}")
            continue
        line = f"image {number}: {width} × {height} pixels, {len(data):,} bytes"
        if number <= len(masked.images):
            start, end = masked.images[number - 1]
            cut = "" if end <= len(masked.token_ids) else ", which are cut off"
            line += f", tokens {start + 1} to {end} ({end - start}){cut}"
        lines.append(line)
    return lines


def thumbnails(looked: Looked, masked: MaskedTokens) -> list[tuple[str, str]]:
    """Return (data URL of a small PNG, its line) for each image that can be decoded."""
    found = []
    for data, line in zip(looked.images, image_lines(looked, masked), strict=True):
        try:
            small = decode(data)
        except DataError:
            continue
        small.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "PNG")
        found.append((f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", line))
    return found
