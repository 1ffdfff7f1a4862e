"""The families of vision-language checkpoints: how many tokens each makes of an image, and what its model is given for one.
`slime_core.data.vision.load_processor` chooses among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from slime_core.data.image_processor import Processor
from slime_core.data.images import Size, decode
from slime_core.data.patches import Patches
from slime_core.errors import ArgumentError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class QwenProcessor(Processor):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL: an image takes tokens by its size, one for every few patches."""

    def features(self, images: Sequence[bytes]) -> dict[str, Tensor]:
        if not Patches.can_be_made(self._images):
            return super().features(images)
        return self._patches.of([decode(data) for data in images])

    @cached_property
    def _patches(self) -> Patches:
        return Patches(self._images)

    def count(self, size: Size) -> int:
        patches: int = self._images.get_number_of_image_patches(size.height, size.width, {})
        return patches // int(self._images.merge_size) ** 2

    @property
    def limits(self) -> tuple[int, int]:
        """Between how many pixels an image is made to have."""
        return int(self._images.size["shortest_edge"]), int(self._images.size["longest_edge"])

    def resized(self, data: bytes) -> Image:
        """Return an encoded image in the size in which it becomes patches: `features` makes the same of it as of the original."""
        image = decode(data)
        grid = self._images(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
        side = self._images.patch_size
        return image.resize((grid[2] * side, grid[1] * side), self._images.resample)

    def each(self, features: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        if not features:
            return []
        grids = features["image_grid_thw"]
        pixels = features["pixel_values"].split_with_sizes(grids.prod(-1).tolist())
        return [{"pixel_values": own, "image_grid_thw": grid[None]} for own, grid in zip(pixels, grids, strict=True)]

    def tokens(self, features: Mapping[str, Tensor]) -> list[int]:
        return [int(n) // self._images.merge_size**2 for n in features["image_grid_thw"].prod(-1)]


class GemmaProcessor(Processor):
    """Gemma 3: every image takes as many tokens, and is seen by them in both directions."""

    types = "token_type_ids"
    sees_both_ways = True

    def __init__(self, config: Any, images: Any, tokens: tuple[str, str, str]) -> None:
        begin, image, end = tokens
        super().__init__(config, images, begin)
        self._number = int(config.mm_tokens_per_image)
        self._text = f"\n\n{begin}{image * self._number}{end}\n\n"

    def count(self, size: Size) -> int:
        return self._number

    def text(self, count: int) -> str:
        return self._text

    def each(self, features: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        return [{"pixel_values": own[None]} for own in features.get("pixel_values", ())]

    def tokens(self, features: Mapping[str, Tensor]) -> list[int]:
        return [self._number] * len(features["pixel_values"])


class IdeficsProcessor(Processor):
    """SmolVLM and Idefics 3, images whole: each becomes a square of one size, and so equally many tokens.

    Args:
        texts: of the tokens that stand before and behind an image, and between the first one and the image.

    Raises:
        ArgumentError: the processor splits images, or its images are not ones that the model takes as they are.
    """

    types = ""

    def __init__(self, config: Any, images: Any, placeholder: str, texts: tuple[str, str]) -> None:
        super().__init__(config, images, placeholder)
        side, step = int(images.max_image_size["longest_edge"]), config.vision_config.patch_size * config.scale_factor
        if images.do_image_splitting:
            raise ArgumentError(
                "its processor splits images into tiles (do_image_splitting), of which one image becomes several runs of tokens, and "
                "here an image is one run; set it to false in preprocessor_config.json, so that images stay whole"
            )
        if side % step:
            raise ArgumentError(
                f"its processor makes images of {side} × {side} pixels (max_image_size in preprocessor_config.json), and its model reads "
                f"squares of {step}; the first must be a multiple of the second"
            )
        if not images.do_normalize or all(abs(mean * 255 - round(mean * 255)) < 1e-3 for mean in images.image_mean):
            raise ArgumentError(
                "its processor makes zeros of a colour (do_normalize, image_mean in preprocessor_config.json), and its model drops "
                "images that are all zeros; it would not see images of that colour"
            )
        self._number = int(side // step) ** 2
        around, whole = texts
        self._text = f"{around}{whole}{placeholder * self._number}{around}"

    def count(self, size: Size) -> int:
        return self._number

    def text(self, count: int) -> str:
        return self._text

    def features(self, images: Sequence[bytes]) -> dict[str, Tensor]:
        return {"pixel_values": super().features(images)["pixel_values"].transpose(0, 1)}

    def each(self, features: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        return [{"pixel_values": own[None]} for own in features.get("pixel_values", ())]

    def tokens(self, features: Mapping[str, Tensor]) -> list[int]:
        return [self._number] * len(features["pixel_values"])
