"""Samples of one micro-batch → one packed row, and the places in it that predict trained tokens.

Pure functions; the backend calls `pack_samples` once per micro-batch. A causal model's output at position i predicts
token i + 1, and nothing after the last predicting position of a sample can reach the loss. So a sample's segment ends
with the token before its last trained one, and a sample without trained tokens takes no place at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slime_core.errors import SampleError
from slime_core.sample import Sample


@dataclass(frozen=True)
class Segments:
    """Where the sequences of a packed row of N tokens lie.

    Attributes:
        lengths: N1, N2, … with sum N, all positive.
        bounds: (len(lengths) + 1,) int32 on the model's device: 0, N1, N1 + N2, … N.
    """

    lengths: tuple[int, ...]
    bounds: Tensor


@dataclass(frozen=True)
class PackedRow:
    """One micro-batch, N tokens of which T outputs are trained, in the order of its samples.

    Attributes:
        input_ids: (1, N) int64.
        position_ids: (1, N) int64, counted from 0 in every segment.
        segments: see `Segments`.
        predictors: (T,) int64 into the N positions: the outputs that predict trained tokens.
        targets: (T,) int64, the trained tokens.
        sample_index: (T,) int64, the number of the sample inside the micro-batch.
        columns: further (T,) values by name.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Segments
    predictors: Tensor
    targets: Tensor
    sample_index: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)


def pack_samples(
    samples: Sequence[Sample],
    *,
    vocab_size: int,
    columns: Mapping[str, Sequence[Sequence[float]]] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PackedRow:
    """Lay the samples end to end.

    Args:
        vocab_size: number of rows of the model's embedding.
        columns: by name, per sample `response_length` values.
        dtype: of the column tensors.

    Raises:
        SampleError: a trained token has nothing before it, or a token id is not in the model's vocabulary.
    """
    input_ids: list[int] = []
    position_ids: list[int] = []
    lengths: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    sample_index: list[int] = []
    chosen: dict[str, list[float]] = {name: [] for name in columns or {}}
    for number, sample in enumerate(samples):
        first = len(sample.tokens) - sample.response_length
        trained = [j for j, flag in enumerate(sample.trained_mask) if flag]
        if not trained:
            continue
        if first + trained[0] == 0:
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
        start = len(input_ids)
        length = first + trained[-1]
        input_ids += sample.tokens[:length]
        position_ids += range(length)
        lengths.append(length)
        predictors += [start + first + j - 1 for j in trained]
        targets += [sample.tokens[first + j] for j in trained]
        sample_index += [number] * len(trained)
        for name, values in chosen.items():
            values += [columns[name][number][j] for j in trained]  # type: ignore[index]

    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    return PackedRow(
        input_ids=integers(input_ids)[None],
        position_ids=integers(position_ids)[None],
        segments=Segments(tuple(lengths), bounds),
        predictors=integers(predictors),
        targets=integers(targets),
        sample_index=integers(sample_index),
        columns={name: torch.tensor(values, dtype=dtype, device=device) for name, values in chosen.items()},
    )


def token_weights(
    samples: Sequence[Sample],
    *,
    per_token: bool,
    num_trained_tokens: int,
    num_samples: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The (T,) weights of `slime_core.loss.Reduce` for the trained tokens of one micro-batch.

    Args:
        per_token: mean over the trained tokens of the global batch, else over its samples.
        num_trained_tokens, num_samples: of the global batch.
    """
    weights: list[float] = []
    for sample in samples:
        trained = sum(sample.trained_mask)
        if trained:
            weights += [1.0 / num_trained_tokens if per_token else 1.0 / (num_samples * trained)] * trained
    return torch.tensor(weights, dtype=dtype, device=device)
