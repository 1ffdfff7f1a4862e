"""The image side of vision-language checkpoints: what stands for an image in the text, how many tokens it takes, and the numbers
that the model's vision tower reads.

The SFT rollout asks for texts and counts, train backends for the numbers, so that encoded images are all that travels and is
kept. transformers' own composite processors need torchvision even for images alone; here their image processors are used, with
Pillow, and the text around images is expanded as theirs is, token for token.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.data.images import Size, decode, size_of
from slime_core.errors import ArgumentError, DataError, SampleError
from slime_core.remote_code import from_pretrained
from slime_core.sample import Sample

if TYPE_CHECKING:
    from torch import Tensor


class Processor(ABC):
    """What a checkpoint makes of images. Made by `load_processor`.

    Attributes:
        config: the checkpoint's configuration.
        token: the id of the token in whose places the model puts the features of images.
        placeholder: what its chat template writes for an image.
        types: the name under which the model is told which tokens are image tokens; "": it is not told.
        sees_both_ways: whether the tokens of an image see those behind them, of the same image.
    """

    types = "mm_token_type_ids"
    sees_both_ways = False

    def __init__(self, config: Any, images: Any, placeholder: str) -> None:
        self.config, self._images, self.placeholder = config, images, placeholder
        self.token = int(config.image_token_id)

    def is_special(self, token: int) -> bool:
        """Whether a token id stands for images or videos."""
        return token in (self.token, getattr(self.config, "video_token_id", None))

    @abstractmethod
    def count(self, size: Size) -> int:
        """Return how many tokens an image of this size takes."""

    def text(self, count: int) -> str:
        """Return what stands in the text, in the place of the placeholder, for an image of so many tokens."""
        return self.placeholder * count

    def counts(self, images: Sequence[bytes], whole: bool = True) -> list[int]:
        """Return how many tokens each of some encoded images takes.

        Args:
            whole: decode all pixels of them, one image after the other, and not their sizes alone.

        Raises:
            DataError: one cannot be used; says which, counted from 1; without file and row.
        """
        found = []
        for number, data in enumerate(images, 1):
            try:
                found.append(self.count(Size(*decode(data).size) if whole else size_of(data)))
            except DataError as error:
                raise DataError(f"image {number}: {error}") from None
            except ValueError as error:  # such as a shape that the processor does not take
                raise DataError(f"image {number}: the checkpoint's processor refuses it: {error}") from None
        return found

    def features(self, images: Sequence[bytes]) -> dict[str, Tensor]:
        """Return what the model is given for some encoded images, at least one, as keyword arguments: float32 pixels and, where
        sizes differ, their grid."""
        found = self._images(images=[decode(data) for data in images], return_tensors="pt")
        return {name: found[name] for name in ("pixel_values", "image_grid_thw") if name in found}

    @abstractmethod
    def each(self, features: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return what `features` returned, image by image."""

    @abstractmethod
    def tokens(self, features: Mapping[str, Tensor]) -> list[int]:
        """Return how many tokens each image takes, from what `features` returned."""

    def features_of(self, sample: Sample) -> dict[str, Tensor]:
        """Return what the model is given for the images of a sample; {} where it has none.

        Raises:
            SampleError: an image cannot be used; names the sample.
        """
        try:
            return self.features(sample.images) if sample.images else {}
        except (DataError, ValueError) as error:
            raise SampleError(f"{sample.name}: {error}.") from None

    def check(self, samples: Sequence[Sample]) -> None:
        """Raise the `SampleError` that `places` would raise for one of these samples, without decoding pixels."""
        for sample in samples:
            try:
                counts = self.counts(sample.images, whole=False)
            except DataError as error:
                raise SampleError(f"{sample.name}: {error}.") from None
            image_places(sample.name, sample.tokens, self.token, counts)

    def places(self, sample: Sample, features: Mapping[str, Tensor]) -> list[tuple[int, int]]:
        """Return for every image its first token in the sample, and the one behind its last.

        Raises:
            SampleError: the image tokens of the sample are not as many as the features of its images.
        """
        counts = self.tokens(features) if features else []
        return image_places(sample.name, sample.tokens, self.token, counts)

    def alone(self, sample: Sample, tokens: Tensor) -> dict[str, Tensor]:
        """Return what transformers' model must be given besides token ids for one sequence alone.

        Args:
            tokens: (1, N) ids, the first ones of the sample.
        """
        features = self.features_of(sample)
        places = self.places(sample, features)
        shown = [image for image, (_, end) in zip(self.each(features), places, strict=True) if end <= tokens.shape[1]]
        if not shown and not self.sees_both_ways:
            return {}
        images = {
            name: _join([image[name] for image in shown]).to(tokens.device) for name in (shown[0] if shown else ())
        }
        return {**images, self.types: (tokens == self.token).int()} if self.types else images


class QwenProcessor(Processor):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL: an image takes tokens by its size, one for every few patches."""

    def count(self, size: Size) -> int:
        patches: int = self._images.get_number_of_image_patches(size.height, size.width, {})
        return patches // int(self._images.merge_size) ** 2

    def each(self, features: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        if not features:
            return []
        grids = features["image_grid_thw"]
        pixels = _split(features["pixel_values"], grids.prod(-1).tolist())
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
        self._number = (side // step) ** 2
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


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm", "idefics3")
"""The model types whose images are read."""


def is_vision_model(config: Any) -> bool:
    """Whether a transformers configuration is of a vision-language model whose images are read here."""
    return getattr(config, "model_type", None) in FAMILIES


def auto_model(config: Any) -> Any:
    """Return transformers' Auto class for a configuration: of language models, or of those that read images."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if is_vision_model(config) else AutoModelForCausalLM


@lru_cache(maxsize=4)
def load_processor(folder: str, min_pixels: int | None = None, max_pixels: int | None = None) -> Processor | None:
    """Return what a Hugging Face checkpoint makes of images; None of a checkpoint that reads none.

    Args:
        min_pixels, max_pixels: `--image-min-pixels` and `--image-max-pixels`.

    Raises:
        ArgumentError: its processor cannot be loaded, or has no such limits.
    """
    from slime_core.data.tokenizer import load_tokenizer

    kind = _model_type(Path(folder))
    if kind not in FAMILIES:
        given = [
            n for n, v in (("--image-min-pixels", min_pixels), ("--image-max-pixels", max_pixels)) if v is not None
        ]
        if given:
            raise ArgumentError(
                f"{given[0]}: the checkpoint {folder} ({kind}) reads no images here. Leave it out, or give a "
                f"checkpoint of one of the types {', '.join(FAMILIES)}."
            )
        return None
    from transformers import AutoConfig, AutoImageProcessor

    config: Any = from_pretrained(AutoConfig, folder)
    try:
        images: Any = from_pretrained(AutoImageProcessor, folder, backend="pil")
    except ImportError as error:
        raise ArgumentError(f"Images need Pillow: pip install pillow ({' '.join(str(error).split())[:200]})") from error
    except Exception as error:  # transformers raises whatever its parsers raise
        raise ArgumentError(
            f"--hf-checkpoint {folder} reads images, but has no image processor that can be loaded (preprocessor_config.json): "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    tokenizer: Any = load_tokenizer(folder)
    if config.model_type == "gemma3":
        _refuse_limits(min_pixels, max_pixels)
        if images.do_pan_and_scan:
            raise ArgumentError(
                f"--hf-checkpoint {folder}: its processor cuts images into crops (do_pan_and_scan), which is not supported; set it "
                "to false in preprocessor_config.json."
            )
        ids = (config.boi_token_index, config.image_token_id, config.eoi_token_index)
        begin, image, end = tokenizer.convert_ids_to_tokens(list(ids))
        return GemmaProcessor(config, images, (begin, image, end))
    if config.model_type in ("smolvlm", "idefics3"):
        _refuse_limits(min_pixels, max_pixels)
        placeholder = tokenizer.convert_ids_to_tokens(config.image_token_id)
        try:
            return IdeficsProcessor(config, images, placeholder, ("<fake_token_around_image>", "<global-img>"))
        except ArgumentError as error:
            raise ArgumentError(f"--hf-checkpoint {folder}: {error}.") from None
    merged = config.vision_config.spatial_merge_size
    if images.merge_size != merged:
        raise ArgumentError(
            f"--hf-checkpoint {folder}: its processor has the merge_size {images.merge_size} (preprocessor_config.json), its model "
            f"{merged} (spatial_merge_size in config.json); they must be equal."
        )
    _limit(images, min_pixels, max_pixels)
    return QwenProcessor(config, images, tokenizer.convert_ids_to_tokens(config.image_token_id))


def _model_type(folder: Path) -> str | None:
    """The type that a checkpoint says it is of; None where it says none, such as a tokenizer alone, of which rows can be previewed."""
    try:
        said: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return said.get("model_type") if isinstance(said, dict) else None


def _join(tensors: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(tensors)


def _split(tensor: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    import torch

    return torch.split(tensor, sizes)


def _refuse_limits(least: int | None, most: int | None) -> None:
    if least is not None or most is not None:
        raise ArgumentError(
            "--image-min-pixels and --image-max-pixels: this model makes every image the same size; leave them out."
        )


def _limit(images: Any, least: int | None, most: int | None) -> None:
    size = dict(images.size)
    size["shortest_edge"] = least or (min(size["shortest_edge"], most) if most else size["shortest_edge"])
    size["longest_edge"] = most or max(size["longest_edge"], size["shortest_edge"])
    if size["shortest_edge"] > size["longest_edge"]:
        raise ArgumentError(
            f"--image-min-pixels {least} is above --image-max-pixels {size['longest_edge']}; give a smaller one."
        )
    images.size = size


def image_places(name: str, tokens: Sequence[int], token: int, counts: Sequence[int]) -> list[tuple[int, int]]:
    """Return for every image its first place among `tokens`, and the one behind its last.

    Args:
        name: whose tokens they are, for messages.
        token: the id of image tokens.
        counts: how many of them each image has.

    Raises:
        SampleError: they are not as many as there are image tokens, or those of an image are not a run of their own.
    """
    places = [place for place, found in enumerate(tokens) if found == token]
    if len(places) != sum(counts):
        raise SampleError(
            f"{name} has {len(places)} image tokens, and its {len(counts)} images give {sum(counts)} features; every feature has a "
            "token. Nothing may cut a sample inside of an image, and no text may spell an image token."
        )
    found: list[tuple[int, int]] = []
    first = 0
    for count in counts:
        start, end = places[first], places[first + count - 1] + 1
        if end - start != count or (found and found[-1][1] == start):
            raise SampleError(
                f"{name}: the tokens of its image {len(found) + 1} are not apart from those of others, or not in one run; every image is "
                "a run of image tokens of its own."
            )
        found.append((start, end))
        first += count
    return found
