"""Images as requests to an engine show them, and what the run's checkpoint makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.data.images import NO_RULES, data_url, encoded
from slime_core.data.vision import load_processor

if TYPE_CHECKING:
    from PIL.Image import Image

    from slime_core.arguments import RunArguments
    from slime_core.data.image_processor import Processor


def encode_image_for_rollout_engine(image: Image) -> str:
    """Return an image of Pillow, in RGB, as a data URL of a PNG file, for the `image_data` of a request."""
    return data_url(encoded(image.convert("RGB"), Path(), NO_RULES))


def processor_of(args: RunArguments) -> Processor | None:
    """Return what the checkpoint of a run makes of images; None of one that reads none."""
    return load_processor(args.hf_checkpoint, args.image_min_pixels, args.image_max_pixels)
