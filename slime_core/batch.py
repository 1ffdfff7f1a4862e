"""`TrainBatch`: what a train backend eats, built from samples by pure functions.

One `TrainBatch` is one optimizer step over the *global* batch. Its micro-batches are lists of sample indices; every
micro-batch becomes one packed row of variable-length segments. Normalisers count the whole global batch, so how the
samples are cut into micro-batches (or spread over ranks) cannot change the loss.

Invariants of `micro_batches`: every sample index appears exactly once; no sample is cut; a sample longer than the
token budget stands alone; the order of the samples inside a micro-batch is ascending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from slime_core.errors import ArgumentError
from slime_core.sample import Sample


@dataclass(frozen=True)
class TrainBatch:
    """One optimizer step's data.

    Attributes:
        samples: the samples of the global batch.
        micro_batches: indices into `samples`, one list per micro-batch.
        num_trained_tokens: trained tokens in the global batch (the per-token normaliser), at least 1.
        num_samples: samples in the global batch (the per-sample normaliser).
        columns: further per-token values such as "advantages"; per sample a list of `response_length` floats.
    """

    samples: Sequence[Sample]
    micro_batches: Sequence[Sequence[int]]
    num_trained_tokens: int
    num_samples: int
    columns: dict[str, Sequence[Sequence[float]]] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """All tokens, prompt and response, that the model has to read."""
        return sum(len(sample.tokens) for sample in self.samples)


def make_train_batch(
    samples: Sequence[Sample], *, micro_batch_size: int = 1, max_tokens: int | None = None
) -> TrainBatch:
    """Build the batch of one optimizer step.

    Args:
        samples: the global batch.
        micro_batch_size: samples per micro-batch; used when `max_tokens` is None.
        max_tokens: token budget of a micro-batch (`--max-tokens-per-gpu` under `--use-dynamic-batch-size`).
    """
    if not samples:
        raise ArgumentError("A training batch needs at least one sample; the rollout returned none.")
    lengths = [len(sample.tokens) for sample in samples]
    if max_tokens is None:
        order = list(range(len(samples)))
        micro_batches = [order[i : i + micro_batch_size] for i in range(0, len(order), micro_batch_size)]
    else:
        micro_batches = pack_by_tokens(lengths, max_tokens)
    return TrainBatch(
        samples=samples,
        micro_batches=micro_batches,
        num_trained_tokens=max(1, sum(sum(sample.trained_mask) for sample in samples)),
        num_samples=len(samples),
    )


def pack_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Pack sequences into as few bins of at most `max_tokens` tokens as first-fit-decreasing finds.

    A sequence longer than `max_tokens` gets a bin of its own. Deterministic: equal lengths keep their order. Bins are
    ordered by their smallest index.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for b, free in enumerate(room):
            if lengths[index] <= free:
                bins[b].append(index)
                room[b] -= lengths[index]
                break
        else:
            bins.append([index])
            room.append(max_tokens - lengths[index])
    return sorted(sorted(b) for b in bins)
