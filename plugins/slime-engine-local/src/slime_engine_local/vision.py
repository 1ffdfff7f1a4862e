"""Images in prompts: read once for all requests that show them, and put in the places of their tokens.

A request has the `Shown` of its images from `Gallery.shown`. What the vision tower makes of an image is computed when the first
chunk of tokens with it is, and kept as long as a request shows the image and the weights stay the same: a group computes it
once. Called by `LocalEngine`, by the scheduler and by `Scoring`; all but `Gallery.shown` on the scheduler's thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from slime_core.data.image_processor import Processor, image_places
from slime_core.data.vision import FAMILIES, is_vision_model
from slime_core.errors import ArgumentError, DataError, SampleError

if TYPE_CHECKING:
    from slime_engine_local.forward_pass import Chunk, ForwardPass
    from slime_engine_local.model import LanguageModel

_numbers = count(1)


@dataclass(eq=False)
class Picture:
    """An image that requests show.

    Attributes:
        data: as it is encoded.
        number: no other image has or had it.
        grid: (1, 3), its patches in time, height and width; None where all images have one size.
        features: see `RowImages`; [] until they are computed.
        made_by: `LanguageModel.state` when they were.
    """

    data: bytes
    number: int = field(default_factory=_numbers.__next__)
    grid: Tensor | None = None
    features: list[Tensor] = field(default_factory=list)
    made_by: object = None


@dataclass(frozen=True, eq=False)
class ShownChunk:
    """The images of n tokens that are computed together, none of which is cut.

    Attributes:
        places: their tokens, among the n.
        features: for each image what is put there; see `RowImages`.
        positions: (3, n), the positions of all n tokens in time, height and width; None where positions are plain numbers.
        blocks: (n,) the number of the image that a token belongs to, 0 for text; None where images are causal as text is.
    """

    places: list[int]
    features: list[list[Tensor]]
    positions: Tensor | None
    blocks: Tensor | None


@dataclass(frozen=True, eq=False)
class RowImages:
    """The images in the row of a forward pass.

    Attributes:
        places: (M,), the tokens of all images in the row.
        features: each (M, hidden): the first takes the place of the embedding, the next ones are added behind the first layers.
    """

    places: Tensor
    features: list[Tensor]

    def embedded(self, x: Tensor) -> Tensor:
        """Put the features into embeddings, (T, hidden)."""
        return x.index_copy(0, self.places, self.features[0].to(x.dtype))

    def behind(self, layer: int, x: Tensor) -> Tensor:
        """Add to the output of a layer, (T, hidden), what belongs there."""
        if layer + 1 >= len(self.features):
            return x
        return x.index_add(0, self.places, self.features[layer + 1].to(x.dtype))


class Shown:
    """The images of one request, whose first N tokens show them.

    Args:
        places: of every image its first token and the one behind its last.
        tokens: the N tokens.

    Attributes:
        shift: what is added to the number of a token behind these N for its position; known once `prepare` was called.
    """

    def __init__(
        self,
        processor: Processor | None,
        pictures: Sequence[Picture],
        places: Sequence[tuple[int, int]],
        tokens: Sequence[int],
    ) -> None:
        self._processor, self._pictures, self._places = processor, pictures, places
        self._tokens = tokens
        self._positions: Tensor | None = None
        self.shift = 0

    def keys(self, tokens: list[int]) -> list[int]:
        """Make tokens of an image other ones than those of another image, in place: what prefixes are compared by."""
        for picture, (start, end) in zip(self._pictures, self._places, strict=True):
            tokens[start:end] = [-picture.number] * (end - start)
        return tokens

    def uncut(self, length: int) -> int:
        """Return the most tokens, at most `length`, behind which no image is cut."""
        return next((start for start, end in self._places if start < length < end), length)

    def whole(self, length: int) -> int:
        """Return the fewest tokens, at least `length`, behind which no image is cut."""
        return next((end for start, end in self._places if start < length < end), length)

    def prepare(self, model: LanguageModel) -> None:
        """Have the features of all images with the present weights, and the positions of all tokens.

        Raises:
            ArgumentError: an image cannot be decoded, or has not as many features as tokens.
        """
        for picture, (start, end) in zip(self._pictures, self._places, strict=True):
            if picture.made_by is not model.state:
                self._compute(model, picture, end - start)
        if self._pictures and self._positions is None and model.has_grid_positions and self._processor is not None:
            ids = torch.tensor([self._tokens])
            grids = torch.cat([picture.grid for picture in self._pictures if picture.grid is not None])
            self._positions = model.grid_positions(ids, (ids == self._processor.token).int(), grids)
            self.shift = int(self._positions.max()) + 1 - len(self._tokens)

    def chunk(self, start: int, end: int) -> ShownChunk | None:
        """Return what belongs to the tokens from `start` to `end`, between which no image is cut; None where that is nothing.
        To be called behind `prepare`."""
        if not self._pictures:
            return None
        inside = [
            (picture, place)
            for picture, place in zip(self._pictures, self._places, strict=True)
            if start <= place[0] and place[1] <= end
        ]
        blocks = None
        if inside and self._processor is not None and self._processor.sees_both_ways:
            blocks = torch.zeros(end - start, dtype=torch.long)
            for number, (_, (first, behind)) in enumerate(inside, 1):
                blocks[first - start : behind - start] = number
        positions = None
        if self._positions is not None:
            known = len(self._tokens)
            rest = torch.arange(max(start, known), max(end, known)) + self.shift
            positions = torch.cat([self._positions[:, start:end], rest.expand(3, -1)], 1)
        places = [place - start for _, (first, behind) in inside for place in range(first, behind)]
        return ShownChunk(places, [picture.features for picture, _ in inside], positions, blocks)

    def forget(self) -> None:
        """Give back the memory of the features."""
        for picture in self._pictures:
            picture.features, picture.made_by = [], None

    def _compute(self, model: LanguageModel, picture: Picture, tokens: int) -> None:
        assert self._processor is not None
        try:
            read = self._processor.features([picture.data])
        except (DataError, ValueError) as error:
            raise ArgumentError(f"An image of the prompt cannot be used: {error}.") from None
        if (found := self._processor.tokens(read)) != [tokens]:
            raise ArgumentError(f"An image of the prompt has {tokens} tokens, and {found[0]} features.")
        picture.grid, picture.features = read.get("image_grid_thw"), model.image_features(read)
        picture.made_by = model.state


NO_IMAGES = Shown(None, (), (), ())
"""Of a request without any."""


class Gallery:
    """Knows the images that requests show, each once.

    Args:
        processor: what the model makes of images; None where it reads none.

    Attributes:
        special: the tokens that stand for images and videos, none of which may be chosen.
    """

    def __init__(self, processor: Processor | None) -> None:
        self._processor = processor
        self._pictures: WeakValueDictionary[bytes, Picture] = WeakValueDictionary()
        config = None if processor is None else processor.config
        ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
        self.special: frozenset[int] = frozenset(token for token in ids if token is not None)

    def shown(self, tokens: Sequence[int], images: Sequence[bytes]) -> Shown:
        """Return the images of a request. Looks at their sizes alone.

        Raises:
            ArgumentError: the model reads none, one cannot be used, or there are more or fewer image tokens than features.
        """
        if self._processor is None:
            if images:
                raise ArgumentError(
                    f"The prompt has {len(images)} images, and the model of the engine 'local' reads none; those of the types "
                    f"{', '.join(FAMILIES)} do."
                )
            return NO_IMAGES
        try:
            places = image_places(
                "The prompt", tokens, self._processor.token, self._processor.counts(images, whole=False)
            )
        except (DataError, SampleError) as error:
            raise ArgumentError(f"{error} (Images are handed over with images=…)") from None
        if not images:
            return NO_IMAGES
        return Shown(self._processor, [self._picture(bytes(data)) for data in images], places, list(tokens))

    def _picture(self, data: bytes) -> Picture:
        if (known := self._pictures.get(data)) is None:
            known = self._pictures[data] = Picture(data)
        return known


def language_part(module: Any) -> tuple[str, Any]:
    """Return the part of a model that reads embeddings, and its name in the model."""
    if not is_vision_model(module.config):
        return "model", module.model
    body = module.base_model.get_decoder()
    return next(name for name, inner in module.named_modules() if inner is body), body


def features_of(body: Any, read: dict[str, Tensor], device: torch.device) -> list[Tensor]:
    """Return what the vision tower makes of one image, for the places of its tokens; see `RowImages`."""
    made = body.get_image_features(**{name: tensor.to(device) for name, tensor in read.items()}, return_dict=True)
    later = getattr(made, "deepstack_features", None) or ()
    return [torch.cat(list(part)).flatten(0, -2) for part in (made.pooler_output, *later)]


def row_images(chunks: Sequence[Chunk], before: int, device: torch.device) -> RowImages | None:
    """Return the images of all chunks of a row, of which `before` tokens lie in front of them."""
    places: list[int] = []
    features: list[list[Tensor]] = []
    for chunk in chunks:
        if chunk.shown is not None:
            places += [before + place for place in chunk.shown.places]
            features += chunk.shown.features
        before += len(chunk.tokens)
    if not features:
        return None
    return RowImages(torch.tensor(places, device=device), [torch.cat(parts) for parts in zip(*features, strict=True)])


def row_positions(step: ForwardPass, device: torch.device) -> Tensor:
    """Return the positions of all tokens of a row: (1, T), or (3, 1, T) where images give them three."""
    decoded = [sequence.length + sequence.shift for sequence in step.decoded]
    if all(chunk.shown is None or chunk.shown.positions is None for chunk in step.chunks):
        for chunk in step.chunks:
            first = chunk.sequence.length + chunk.sequence.shift
            decoded += range(first, first + len(chunk.tokens))
        return torch.tensor([decoded], device=device)
    parts = [torch.tensor(decoded, dtype=torch.long).expand(3, -1)]
    for chunk in step.chunks:
        if chunk.shown is not None and chunk.shown.positions is not None:
            parts.append(chunk.shown.positions)
        else:
            first = chunk.sequence.length + chunk.sequence.shift
            parts.append(torch.arange(first, first + len(chunk.tokens)).expand(3, -1))
    return torch.cat(parts, 1)[:, None].to(device)


def probe_chunk(module: Any, length: int, dtype: torch.dtype, device: torch.device) -> ShownChunk | None:
    """Return an image of random features among some tokens, with which forms of a model are compared; None where it reads none."""
    if not is_vision_model(module.config):
        return None
    later = len(getattr(module.config.vision_config, "deepstack_visual_indexes", ()) or ())
    size = module.config.get_text_config().hidden_size
    random = torch.Generator().manual_seed(0)
    features = [torch.randn(2, size, generator=random).to(device, dtype) for _ in range(1 + later)]
    positions = None
    if hasattr(module.model, "get_rope_index"):
        positions = torch.arange(length).expand(3, -1).clone()
        positions[1, 3] += 2
        positions[2, 4] += 5
    return ShownChunk([3, 4], [features], positions, None)
