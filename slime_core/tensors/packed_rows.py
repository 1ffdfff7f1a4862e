"""The samples of a micro-batch as one packed row, and the places in it that predict trained tokens.

Pure functions; a train backend calls `pack_samples` once per micro-batch. A causal model's output at position i
predicts token i + 1, and nothing after the last predicting position of a sample can reach the loss. So what is computed
of a sample ends with the token before its last trained one, and a sample without trained tokens takes no place at all.

With shared prompts, samples of one group become one segment: their prompt, the *stem*, once, and after it the
*branches*, which are the responses. A branch's tokens see the stem and their own branch, and its positions go on from
the stem's, so every token is computed as if its sample stood alone. The stem's last position predicts the first token
of every response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from slime_core.contracts.train_backend import prompt_tokens, shared_runs
from slime_core.errors import SampleError
from slime_core.sample import Sample


@dataclass(frozen=True)
class Branches:
    """The inner order of a segment of L tokens in which several responses share a prompt.

    Attributes:
        lengths: of the stem and of every branch, all positive, with sum L.
        owner: (L,) int64, 0 in the stem, the branch's number, from 1, elsewhere.
        position: (L,) int64, the position in the sample.
    """

    lengths: tuple[int, ...]
    owner: Tensor
    position: Tensor


@dataclass(frozen=True)
class Segments:
    """Where the sequences of a packed row of N tokens lie.

    Attributes:
        lengths: N1, N2, … with sum N, all positive.
        bounds: (len(lengths) + 1,) int32 on the model's device: 0, N1, N1 + N2, … N.
        branches: of every segment; None for a plain sequence.
        blocks: of every segment (L,) int64, the number, from 1, of the image that a token belongs to, and 0 for text, where the tokens
            of an image see each other in both directions; None for a segment without images. () without any images.
    """

    lengths: tuple[int, ...]
    bounds: Tensor
    branches: tuple[Branches | None, ...]
    blocks: tuple[Tensor | None, ...] = ()

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, ...]], device: torch.device | str = "cpu") -> Segments:
        """Lay segments of these shapes end to end.

        Args:
            shapes: per segment (length,), or the lengths of its stem and its branches.
        """
        lengths = tuple(sum(shape) for shape in shapes)
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(lengths, bounds, tuple(_branches(shape, device) if len(shape) > 1 else None for shape in shapes))


def _branches(shape: tuple[int, ...], device: torch.device | str) -> Branches:
    owner = [number for number, length in enumerate(shape) for _ in range(length)]
    stem, *others = shape
    position = [*range(stem), *(stem + j for length in others for j in range(length))]
    return Branches(shape, torch.tensor(owner, device=device), torch.tensor(position, device=device))


class Piece(NamedTuple):
    """Neighbouring tokens of one sample that are laid in a row.

    Attributes:
        sample: the number of the sample inside the micro-batch.
        start, end: its first token that is laid, and the one behind the last.
    """

    sample: int
    start: int
    end: int


@dataclass(frozen=True)
class PackedRow:
    """One micro-batch of N tokens, with T outputs that predict trained tokens, in the order of its samples.

    Attributes:
        input_ids: (1, N) int64.
        position_ids: (1, N) int64, counted from 0 in every sample; (3, 1, N) where a vision-language model counts them in time,
            height and width.
        segments: where the sequences lie in the row.
        predictors: (T,) int64 into the N positions: the outputs that predict trained tokens. With shared prompts one
            may occur several times.
        targets: (T,) int64, the trained tokens.
        sample_index: (T,) int64, the number of the sample inside the micro-batch.
        columns: further (T,) values of the trained tokens, by name.
        pieces: whose tokens the N are, in their order.
        images: what a vision-language model is given for the images of the row, in the order of their tokens, by name.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Segments
    predictors: Tensor
    targets: Tensor
    sample_index: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)
    pieces: tuple[Piece, ...] = ()
    images: Mapping[str, Tensor] = field(default_factory=dict)


def trained_places(sample: Sample) -> list[int]:
    """The places of the trained tokens in the response, ascending."""
    return [j for j, flag in enumerate(sample.trained_mask) if flag]


def pack_samples(
    samples: Sequence[Sample],
    *,
    vocab_size: int,
    share_prompts: bool = False,
    columns: Mapping[str, Sequence[Sequence[float]]] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    whole: bool = False,
) -> PackedRow:
    """Lay the samples end to end, and find the outputs that predict their trained tokens.

    Args:
        vocab_size: number of rows of the model's embedding.
        share_prompts: the prompt of neighbours with the same group and prompt is laid once.
        columns: by name, per sample `response_length` values.
        dtype: of the column tensors.
        whole: lay all tokens of a sample, also those that cannot reach the loss, for a model to which its length matters.

    Raises:
        SampleError: a trained token has nothing before it, or a token id is not in the model's vocabulary.
    """
    input_ids: list[int] = []
    position_ids: list[int] = []
    shapes: list[tuple[int, ...]] = []
    predictors: list[int] = []
    targets: list[int] = []
    sample_index: list[int] = []
    pieces: list[Piece] = []
    given = columns or {}
    chosen: dict[str, list[float]] = {name: [] for name in given}
    places = [trained_places(sample) for sample in samples]
    for run in _runs(samples, [n for n, trained in enumerate(places) if trained], share_prompts):
        prompt = prompt_tokens(samples[run[0]])
        first, start = len(prompt), len(input_ids)
        input_ids += prompt
        position_ids += range(first)
        pieces += [Piece(run[0], 0, first)] if first else []
        branches: list[int] = []
        for number in run:
            sample, trained = samples[number], places[number]
            _check(sample, first + trained[0], vocab_size)
            response, begin = sample.tokens[first:], len(input_ids)
            length = len(response) if whole else trained[-1]
            input_ids += response[:length]
            position_ids += range(first, first + length)
            branches += [length] if length else []
            pieces += [Piece(number, first, first + length)] if length else []
            predictors += [begin + j - 1 if j else start + first - 1 for j in trained]
            targets += [response[j] for j in trained]
            sample_index += [number] * len(trained)
            for name, values in chosen.items():
                values += [given[name][number][j] for j in trained]
        shapes.append((first, *branches) if len(branches) > 1 else (first + sum(branches),))

    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return PackedRow(
        input_ids=integers(input_ids)[None],
        position_ids=integers(position_ids)[None],
        segments=Segments.of(shapes, device),
        predictors=integers(predictors),
        targets=integers(targets),
        sample_index=integers(sample_index),
        columns={name: torch.tensor(values, dtype=dtype, device=device) for name, values in chosen.items()},
        pieces=tuple(pieces),
    )


def placeholder_row(vocab_size: int, device: torch.device | str = "cpu") -> PackedRow:
    """A row of two tokens that belong to no sample.

    Ranks that exchange something while they compute all have to compute something: one without a token to train
    computes this row, and lets its result not count.
    """
    return pack_samples([Sample(tokens=[0, 0], response_length=1)], vocab_size=vocab_size, device=device)


def check_samples(samples: Sequence[Sample], vocab_size: int) -> None:
    """Raise the `SampleError` that `pack_samples` would raise for these samples."""
    for sample in samples:
        if places := trained_places(sample):
            _check(sample, len(sample.tokens) - sample.response_length + places[0], vocab_size)


def _runs(samples: Sequence[Sample], order: list[int], share_prompts: bool) -> list[list[int]]:
    """Cut the numbers of the samples into those that become one segment. Without a prompt nothing can be shared."""
    if not share_prompts:
        return [[number] for number in order]
    runs = shared_runs(samples, order)
    return [part for run in runs for part in ([run] if prompt_tokens(samples[run[0]]) else [[n] for n in run])]


def _check(sample: Sample, first_trained: int, vocab_size: int) -> None:
    if first_trained == 0:
        raise SampleError(
            f"The first token of {sample.name} is trained, but nothing precedes it to predict it from. "
            "Mask it, or begin the sample with a prompt."
        )
    largest = max(sample.tokens)
    if largest >= vocab_size or min(sample.tokens) < 0:
        raise SampleError(
            f"{sample.name} holds the token id {largest}, but the model knows the ids 0 to {vocab_size - 1}. "
            "Use the tokenizer that belongs to --hf-checkpoint."
        )
