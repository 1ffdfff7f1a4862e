"""Images as requests to an engine show them, and what the run's checkpoint makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.data.images import NO_RULES, data_url, encoded

if TYPE_CHECKING:
    from PIL.Image import Image


def encode_image_for_rollout_engine(image: Image) -> str:
    """Return an image of Pillow, in RGB, as a data URL of a PNG file, for the `image_data` of a request."""
    return data_url(encoded(image.convert("RGB"), Path(), NO_RULES))
