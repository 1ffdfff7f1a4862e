"""`TrainBatch`: what a train backend eats, built from samples by pure functions.

One `TrainBatch` is one optimizer step over the *global* batch. Its micro-batches are lists of sample indices; every
micro-batch becomes one packed row of variable-length segments. The weight of a token counts the whole global batch, so
how the samples are cut into micro-batches (or spread over ranks) cannot change the loss.

Invariants of `micro_batches`: every sample index that is not skipped appears exactly once; no sample is cut; a sample
longer than the token budget stands alone; the order of the samples inside a micro-batch is ascending.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from slime_core.errors import ArgumentError
from slime_core.sample import Sample

Mean = Literal["sample", "token", "constant"]


@dataclass(frozen=True)
class TrainBatch:
    """One optimizer step's data.

    Attributes:
        samples: the samples of the global batch.
        micro_batches: indices into `samples`, one list per micro-batch. Samples in none of them are not computed.
        weights: per sample, the weight of each of its trained tokens in the loss; see `token_weights`.
        measured: the same over the samples in `micro_batches` alone: for diagnostics that need the model's output.
        columns: further per-token values such as "advantages"; per sample a list of `response_length` floats. Named
            like the fields of `slime_core.loss.LossInputs`.
        temperature: the logits are divided by it before log-probs are taken, as they were when the tokens were sampled.
        share_prompts: compute the prompt of neighbouring samples with the same group and prompt once.
    """

    samples: Sequence[Sample]
    micro_batches: Sequence[Sequence[int]]
    weights: Sequence[float]
    measured: Sequence[float]
    columns: dict[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    temperature: float = 1.0
    share_prompts: bool = False

    @property
    def num_tokens(self) -> int:
        """All tokens, prompt and response, of the global batch."""
        return sum(len(sample.tokens) for sample in self.samples)

    @property
    def num_trained_tokens(self) -> int:
        """Tokens with a loss."""
        return sum(sum(sample.trained_mask) for sample in self.samples)


def make_train_batch(
    samples: Sequence[Sample],
    *,
    mean: Mean = "sample",
    constant: float = 1.0,
    micro_batch_size: int = 1,
    max_tokens: int | None = None,
    share_prompts: bool = False,
    temperature: float = 1.0,
    columns: dict[str, Sequence[Sequence[float]]] | None = None,
    skipped: Collection[int] = (),
) -> TrainBatch:
    """Build the batch of one optimizer step.

    Args:
        samples: the global batch.
        mean, constant: see `token_weights`.
        micro_batch_size: samples per micro-batch; used when `max_tokens` is None.
        max_tokens: token budget of a micro-batch (`--max-tokens-per-gpu` under `--use-dynamic-batch-size`).
        share_prompts: keep samples of a group together, and count their prompt once.
        skipped: indices of samples that need no computation; they count in `weights` all the same.
    """
    if not samples:
        raise ArgumentError("A training batch needs at least one sample; the rollout returned none.")
    order = [i for i in range(len(samples)) if i not in skipped]
    if max_tokens is None:
        micro_batches = [order[i : i + micro_batch_size] for i in range(0, len(order), micro_batch_size)]
    else:
        units = _units(samples, order, max_tokens) if share_prompts else [[i] for i in order]
        packed = pack_by_tokens([_num_tokens(samples, unit, share_prompts) for unit in units], max_tokens)
        micro_batches = [sorted(i for number in numbers for i in units[number]) for numbers in packed]
    computed = token_weights([samples[i] for i in order], mean, constant)
    measured = dict(zip(order, computed, strict=True))
    return TrainBatch(
        samples=samples,
        micro_batches=micro_batches,
        weights=token_weights(samples, mean, constant),
        measured=[measured.get(i, 0.0) for i in range(len(samples))],
        columns=columns or {},
        temperature=temperature,
        share_prompts=share_prompts,
    )


def token_weights(samples: Sequence[Sample], mean: Mean, constant: float = 1.0) -> list[float]:
    """Per sample, the weight of each of its trained tokens, 0 where it has none.

    With N samples, n_s trained tokens in sample s and M trained tokens in all:

    * "token" (`--calculate-per-token-loss`): 1 / M;
    * "sample" (the default): 1 / (N · n_s). A sample without trained tokens contributes nothing and still counts in N;
    * "constant" (Dr. GRPO, arXiv 2503.20783): 1 / (N · constant), so that long samples are not favoured.
    """
    counts = [sum(sample.trained_mask) for sample in samples]
    divisors = {
        "token": lambda count: max(1, sum(counts)),
        "sample": lambda count: len(samples) * count,
        "constant": lambda count: len(samples) * constant,
    }
    return [1.0 / divisors[mean](count) if count else 0.0 for count in counts]


def prompt_tokens(sample: Sample) -> list[int]:
    """The tokens before the response."""
    return sample.tokens[: len(sample.tokens) - sample.response_length]


def shared_runs(samples: Sequence[Sample], order: Sequence[int]) -> list[list[int]]:
    """`order` cut into runs of neighbours that have group and prompt in common."""
    keyed = groupby(order, key=lambda i: (samples[i].group_index, prompt_tokens(samples[i])))
    return [list(run) for _, run in keyed]


def _units(samples: Sequence[Sample], order: Sequence[int], max_tokens: int) -> list[list[int]]:
    """What is packed whole: runs with a common prompt, cut where they would exceed the budget."""
    units: list[list[int]] = []
    for run in shared_runs(samples, order):
        unit: list[int] = []
        for index in run:
            if unit and _num_tokens(samples, [*unit, index], True) > max_tokens:
                units.append(unit)
                unit = []
            unit.append(index)
        units.append(unit)
    return units


def _num_tokens(samples: Sequence[Sample], unit: Sequence[int], share_prompts: bool) -> int:
    if not share_prompts:
        return sum(len(samples[i].tokens) for i in unit)
    return len(prompt_tokens(samples[unit[0]])) + sum(samples[i].response_length for i in unit)


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
