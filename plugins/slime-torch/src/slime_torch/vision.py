"""What a vision-language model is given of a packed row besides token ids: the positions of every token, the numbers of its
images, and which tokens belong to one image. Called by the predictor, and by the proof that a model is computed rightly.

Images are decoded here, when their row is computed, and what is made of them is dropped after it. In the row they lie in the order
of their tokens, which is the only thing that tells the model whose they are: so the tokens of every sample are counted against
the features of its own images first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slime_core.data.image_processor import Processor
from slime_core.data.vision import is_vision_model
from slime_core.errors import ArgumentError, PluginError
from slime_core.sample import Sample
from slime_core.tensors.packed_rows import PackedRow
from slime_core.tensors.rotary import looks_at_length
from slime_core.token_arrays import num_tokens, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require_no_images(samples: Sequence[Sample], model: PreTrainedModel) -> None:
    """Raise `ArgumentError` if a sample has images, which `model` does not read: it would train blind."""
    for sample in samples:
        if sample.images:
            raise ArgumentError(
                f"{sample.name} has images, and the model ({type(model).__name__}) reads none. Give a vision-language checkpoint, or "
                "data without images."
            )


def language_model(model: PreTrainedModel) -> nn.Module:
    """The part of a model that reads tokens: of a vision-language model what lies beside its vision tower, else all of it."""
    body: Any = model.base_model
    found: nn.Module = body.get_decoder() if is_vision_model(model.config) else body
    return found


def vision_names(model: PreTrainedModel) -> list[str]:
    """The names of the parameters through which images alone go: tower and projector. None where the model reads none."""
    if not is_vision_model(model.config):
        return []
    of_text = {id(p) for p in language_model(model).parameters()} | {
        id(p)
        for p in model.get_output_embeddings().parameters()  # type: ignore[no-untyped-call]  # transformers does not annotate it
    }
    return [name for name, p in model.named_parameters() if id(p) not in of_text]


class Vision:
    """Prepares the rows of one model.

    Args:
        processor: of its checkpoint.

    Raises:
        PluginError: the model's positions are computed otherwise in longer sequences.
    """

    def __init__(self, model: PreTrainedModel, processor: Processor) -> None:
        if looks_at_length(model):
            raise PluginError(
                f"The torch backend cannot train {type(model).__name__}: its rotary embeddings depend on the length of a sequence, "
                "which is not supported beside images."
            )
        self._body: Any = model.base_model
        self._text = language_model(model)
        self.processor = processor

    def laid(self, row: PackedRow, samples: Sequence[Sample]) -> PackedRow:
        """Return a packed row with its images, and with the positions that they give to its tokens.

        Args:
            samples: those that were packed, by their numbers.

        Raises:
            SampleError: the image tokens of a sample are not as many as the features of its images, or an image cannot be used.
        """
        known: dict[tuple[bytes, ...], Mapping[str, Tensor]] = {}  # the samples of a group show the same images
        read = {
            number: self._read(samples[number], known) for number in dict.fromkeys(piece.sample for piece in row.pieces)
        }
        device = row.input_ids.device
        shown = [
            image
            for piece in row.pieces
            for image, (start, end) in read[piece.sample].images
            if piece.start <= start and end <= piece.end
        ]
        positions = [read[piece.sample].positions[..., piece.start : piece.end] for piece in row.pieces]
        images = {name: torch.cat([image[name] for image in shown]).to(device) for name in (shown[0] if shown else ())}
        segments = row.segments
        if self.processor.sees_both_ways and shown:
            blocks = torch.cat([read[piece.sample].blocks[piece.start : piece.end] for piece in row.pieces])
            own = torch.split(blocks.to(device), list(segments.lengths))
            segments = replace(segments, blocks=tuple(block if block.any() else None for block in own))
        position_ids = torch.cat(positions, -1).to(device) if positions else row.position_ids
        return replace(row, position_ids=position_ids, segments=segments, images=images)

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Let the model compute a row without images as it does one with images, as far as ranks exchange something: everything that
        is trained of vision gets a gradient, of 0, through what the first layer reads."""
        text = {id(parameter) for parameter in self._text.parameters()}
        own = [p for p in self._body.parameters() if p.requires_grad and id(p) not in text]

        def with_nothing(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
            for parameter in own:
                embedded = embedded + parameter.sum().to(embedded.dtype) * 0
            return embedded

        handle = self._body.get_input_embeddings().register_forward_hook(with_nothing)
        try:
            yield
        finally:
            handle.remove()

    def _read(self, sample: Sample, known: dict[tuple[bytes, ...], Mapping[str, Tensor]]) -> _Read:
        if (shown := tuple(sample.images)) not in known:
            known[shown] = self.processor.features_of(sample)
        features = known[shown]
        places = self.processor.places(sample, features)
        blocks = torch.zeros(num_tokens(sample), dtype=torch.int64)
        for number, (start, end) in enumerate(places, 1):
            blocks[start:end] = number
        images: list[_Shown] = list(zip(self.processor.each(features), places, strict=True))
        return _Read(self._positions(sample, features), images, blocks)

    def _positions(self, sample: Sample, features: Mapping[str, Tensor]) -> Tensor:
        count = num_tokens(sample)
        if not hasattr(self._body, "get_rope_index"):
            return torch.arange(count)[None]
        if not features:
            return torch.arange(count).expand(3, 1, count)
        ids = torch.tensor(token_ids(sample), dtype=torch.int64)[None]
        types = (ids == self.processor.token).int()
        positions: Tensor = self._body.get_rope_index(ids, types, image_grid_thw=features["image_grid_thw"])[0]
        return positions


_Shown = tuple[Mapping[str, Tensor], tuple[int, int]]


@dataclass(frozen=True)
class _Read:
    """What was read of a sample of N tokens.

    Attributes:
        positions: (1, N), or (3, 1, N) in time, height and width.
        images: of every image, what the model is given for it, and its first token and the one behind its last.
        blocks: (N,) the number of the image that a token belongs to, from 1; 0 for text.
    """

    positions: Tensor
    images: list[_Shown]
    blocks: Tensor
