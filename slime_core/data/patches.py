"""What Qwen-VL's image processor makes of images, bit for bit, in a fifth of the time and memory. Called by
`slime_core.data.vision_families`.

transformers rescales and normalises every pixel in float64 and copies all patches three times. A pixel has one of 256 values in each
channel, so here the processor is asked once what it makes of those, and patches stay bytes until each is written to its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_LEVELS, _CHANNELS = 256, 3


class Patches:
    """Makes patches as one of transformers' processors does.

    Args:
        images: a `Qwen2VLImageProcessorPil`.
    """

    def __init__(self, images: Any) -> None:
        from transformers.image_utils import SizeDict

        self._images, self._size = images, SizeDict(**dict(images.size))
        ramp: Any = np.arange(_LEVELS, dtype=np.uint8).reshape(1, 16, 16).repeat(_CHANNELS, 0)
        if images.do_rescale:
            ramp = images.rescale(ramp, images.rescale_factor)
        if images.do_normalize:
            ramp = images.normalize(ramp, images.image_mean, images.image_std)
        self._values = np.asarray(ramp, dtype=np.float32).reshape(_CHANNELS, _LEVELS)

    @staticmethod
    def can_be_made(images: Any) -> bool:
        """Whether a processor is one whose work is known here, and no class of its own made from it."""
        return type(images).__name__ == "Qwen2VLImageProcessorPil" and type(images).__module__.startswith(
            "transformers."
        )

    def of(self, images: Sequence[Image]) -> dict[str, Tensor]:
        """Return `pixel_values` (N, numbers of a patch) in float32 and `image_grid_thw` (images, 3) of RGB images.

        Raises:
            ValueError: a shape that the processor does not take.
        """
        import torch

        shown = [self._resized(image) for image in images]
        own, patch, merge = self._images, self._images.patch_size, self._images.merge_size
        grids = [(1, image.shape[1] // patch, image.shape[2] // patch) for image in shown]
        repeats = own.temporal_patch_size
        pixels = np.empty(
            (sum(rows * columns for _, rows, columns in grids), _CHANNELS, repeats, patch, patch), dtype=np.float32
        )
        start = 0
        for image, (_, rows, columns) in zip(shown, grids, strict=True):
            # (channel, rows of blocks, rows in a block, pixel rows, and the same of columns)
            cut = image.reshape(_CHANNELS, rows // merge, merge, patch, columns // merge, merge, patch)
            cut = cut.transpose(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, _CHANNELS, patch, patch)
            for channel in range(_CHANNELS):
                found = self._values[channel].take(cut[:, channel], mode="clip")  # no index is beyond: bytes into 256
                pixels[start : start + len(cut), channel] = found[:, None]
            start += len(cut)
        return {
            "pixel_values": torch.from_numpy(pixels.reshape(len(pixels), -1)),
            "image_grid_thw": torch.tensor(grids, dtype=torch.int64),
        }

    def _resized(self, image: Image) -> Any:
        """The bytes of an image (channels, height, width) in the size that the processor brings it to."""
        own, pixels = self._images, np.asarray(image).transpose(2, 0, 1)
        if own.do_resize:
            factor = own.patch_size * own.merge_size
            pixels = own.resize(pixels, size=self._size, resample=own.resample, factor=factor)
        return pixels
