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
from itertools import accumulate, pairwise
from operator import add
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slime_core.contracts.train_backend import shared_runs
from slime_core.errors import SampleError
from slime_core.sample import Sample
from slime_core.tensors.sequences import Sequences
from slime_core.token_arrays import flat, num_trained, prompt_ids, token_ids, trained

IntArray = np.ndarray[Any, np.dtype[Any]]


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
        sequences: the same for the kernels of a device, where the row was sent to one; None: in host memory.
    """

    lengths: tuple[int, ...]
    bounds: Tensor
    branches: tuple[Branches | None, ...]
    blocks: tuple[Tensor | None, ...] = ()
    sequences: Sequences | None = None

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
    lengths = torch.tensor(shape)
    begins = lengths.cumsum(0) - lengths
    begins[1:] -= shape[0]  # every branch goes on behind the stem
    owner = torch.arange(len(shape)).repeat_interleave(lengths)
    position = torch.arange(sum(shape)) - begins[owner]
    return Branches(shape, owner.to(device), position.to(device))


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
    return np.flatnonzero(trained(sample)).tolist()


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
    numbers = [number for number, sample in enumerate(samples) if num_trained(sample)]
    own = [samples[number] for number in numbers]
    ids = [token_ids(sample) for sample in own]
    masks = [trained(sample) for sample in own]
    # The trained tokens of all samples, counted through all responses: those of sample k are chosen[cuts[k] : cuts[k + 1]].
    ends = [0, *accumulate(map(len, masks))]
    chosen = np.concatenate(masks).nonzero()[0] if masks else np.zeros(0, dtype=np.int64)
    cuts: list[int] = np.searchsorted(chosen, ends).tolist()
    first_trained = [int(chosen[cut]) - end for cut, end in zip(cuts[:-1], ends, strict=False)]
    last_trained = [int(chosen[cut - 1]) - end for cut, end in zip(cuts[1:], ends, strict=False)]
    first = [len(one) - len(mask) for one, mask in zip(ids, masks, strict=True)]  # of the response
    _check(own, ids, list(map(add, first, first_trained)), vocab_size)

    shapes: list[tuple[int, ...]] = []
    pieces: list[Piece] = []
    laid: list[IntArray] = []
    begins: list[int] = []  # where each response begins in the row
    stems: list[int] = []  # where its stem ends
    size = place = 0
    for run in _runs(samples, numbers, share_prompts):
        prompt = first[place]
        if prompt:
            pieces.append(Piece(run[0], 0, prompt))
            laid.append(ids[place][:prompt])
        size += prompt
        branches: list[int] = []
        stem = size
        for number in run:
            begins.append(size)
            stems.append(stem)
            length = len(masks[place]) if whole else last_trained[place]
            if length:
                branches.append(length)
                pieces.append(Piece(number, prompt, prompt + length))
                laid.append(ids[place][prompt : prompt + length])
            size, place = size + length, place + 1
        shapes.append((prompt, *branches) if len(branches) > 1 else (prompt + sum(branches),))

    counted = np.arange(max((piece.end for piece in pieces), default=0))
    counts = [after - before for before, after in pairwise(cuts)]
    predictors = _repeated([begin - end - 1 for begin, end in zip(begins, ends, strict=False)], counts)
    predictors += chosen
    for cut, offset, stem in zip(cuts[:-1], first_trained, stems, strict=True):
        if not offset:
            predictors[cut] = stem - 1
    responses = [one[length:] for one, length in zip(ids, first, strict=True)]

    def tensor(array: IntArray) -> Tensor:
        return torch.from_numpy(array).to(device)

    def of_trained(values: IntArray) -> IntArray:
        return values if len(chosen) == ends[-1] else values.take(chosen)

    def column(rows: Sequence[Sequence[float]]) -> Tensor:
        values = flat([rows[number] for number in numbers], "float32" if dtype == torch.float32 else "float64")
        return tensor(of_trained(values)).to(dtype)

    return PackedRow(
        input_ids=tensor(_joined(laid))[None],
        position_ids=tensor(_joined([counted[piece.start : piece.end] for piece in pieces]))[None],
        segments=Segments.of(shapes, device),
        predictors=tensor(predictors),
        targets=tensor(of_trained(_joined(responses))),
        sample_index=tensor(_repeated(numbers, counts)),
        columns={name: column(rows) for name, rows in (columns or {}).items()},
        pieces=tuple(pieces),
    )


def _joined(arrays: Sequence[IntArray]) -> IntArray:
    """Whole numbers one after the other: (N,) int64, new."""
    return np.concatenate(arrays, dtype=np.int64) if arrays else np.zeros(0, dtype=np.int64)


def _repeated(numbers: Sequence[int], counts: Sequence[int]) -> IntArray:
    """Each number as often as its count says: int64, new."""
    return np.repeat(np.array(numbers, dtype=np.int64), counts) if counts else np.zeros(0, dtype=np.int64)


def placeholder_row(vocab_size: int, device: torch.device | str = "cpu") -> PackedRow:
    """A row of two tokens that belong to no sample.

    Ranks that exchange something while they compute all have to compute something: one without a token to train
    computes this row, and lets its result not count.
    """
    return pack_samples([Sample(tokens=[0, 0], response_length=1)], vocab_size=vocab_size, device=device)


def check_samples(samples: Sequence[Sample], vocab_size: int) -> None:
    """Raise the `SampleError` that `pack_samples` would raise for these samples."""
    own = [sample for sample in samples if num_trained(sample)]
    ids = [token_ids(sample) for sample in own]
    first = [len(one) - s.response_length + int(trained(s).argmax()) for s, one in zip(own, ids, strict=True)]
    _check(own, ids, first, vocab_size)


def _runs(samples: Sequence[Sample], order: list[int], share_prompts: bool) -> list[list[int]]:
    """Cut the numbers of the samples into those that become one segment. Without a prompt nothing can be shared."""
    if not share_prompts:
        return [[number] for number in order]
    runs = shared_runs(samples, order)
    return [part for run in runs for part in ([run] if len(prompt_ids(samples[run[0]])) else [[n] for n in run])]


def _check(samples: Sequence[Sample], ids: Sequence[IntArray], first_trained: Sequence[int], vocab_size: int) -> None:
    if not samples:
        return
    every = np.concatenate(ids)
    if all(first_trained) and every.max(initial=0) < vocab_size and every.min(initial=0) >= 0:
        return
    for sample, own, first in zip(samples, ids, first_trained, strict=True):
        if first == 0:
            raise SampleError(
                f"The first token of {sample.name} is trained, but nothing precedes it to predict it from. "
                "Mask it, or begin the sample with a prompt."
            )
        outside = own[(own < 0) | (own >= vocab_size)]
        if outside.size:
            raise SampleError(
                f"{sample.name} holds the token id {outside[0]}, but the model knows the ids 0 to {vocab_size - 1}. "
                "Use the tokenizer that belongs to --hf-checkpoint."
            )
