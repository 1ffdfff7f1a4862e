"""What every checkpoint that reads images says of them: how many tokens an image takes, what stands for it in the text, and what its
model is given for it. Its families are in `slime_core.data.vision_families`; `slime_core.data.vision` loads one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.data.images import Size, decode, size_of
from slime_core.errors import DataError, SampleError
from slime_core.sample import Sample
from slime_core.token_arrays import token_ids

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

    def save(self, folder: Path) -> None:
        """Write it for `transformers.AutoImageProcessor`, with the limits that it was loaded with."""
        self._images.save_pretrained(folder)

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
            image_places(sample.name, token_ids(sample), self.token, counts)

    def places(self, sample: Sample, features: Mapping[str, Tensor]) -> list[tuple[int, int]]:
        """Return for every image its first token in the sample, and the one behind its last.

        Raises:
            SampleError: the image tokens of the sample are not as many as the features of its images.
        """
        counts = self.tokens(features) if features else []
        return image_places(sample.name, token_ids(sample), self.token, counts)

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


def image_places(name: str, tokens: Any, token: int, counts: Sequence[int]) -> list[tuple[int, int]]:
    """Return for every image its first place among `tokens`, and the one behind its last.

    Args:
        name: whose tokens they are, for messages.
        tokens: a list of ids, or an array.
        token: the id of image tokens.
        counts: how many of them each image has.

    Raises:
        SampleError: they are not as many as there are image tokens, or those of an image are not a run of their own.
    """
    import numpy as np

    places: list[int] = np.flatnonzero(np.asarray(tokens) == token).tolist()
    further = len(places) - sum(counts)
    if counts and further > 0:
        raise SampleError(
            f"{name} has {further} image tokens behind those of its {len(counts)} images, the first of them at token "
            f"{places[-further]}, and no image for them. Prompts alone have images: what follows one, as what tools answer and later "
            "turns ask, must be text that spells no image token."
        )
    if further:
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


def _join(tensors: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(tensors)
