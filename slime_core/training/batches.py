"""How the samples of an optimizer step become its `TrainBatch`. Pure functions.

One `TrainBatch` is one optimizer step over the *global* batch. Its micro-batches are lists of sample indices; every
micro-batch becomes one packed row of variable-length segments. The weight of a token counts the whole global batch, so
how the samples are cut into micro-batches (or spread over ranks) cannot change the loss.

Invariants of `micro_batches`: every sample index that is not skipped appears exactly once; no sample is cut; a sample
longer than the token budget stands alone; the order of the samples inside a micro-batch is ascending; a batch made for
N ranks has a multiple of N of them, and only then may some be empty. Rank r computes every N-th one from the r-th on,
so N neighbours are a *round* in which the ranks work at the same time and wait for each other.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from slime_core.contracts.train_backend import TrainBatch, prompt_tokens, shared_runs
from slime_core.errors import ArgumentError
from slime_core.sample import Sample

Mean = Literal["sample", "token", "constant"]


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
    ranks: int = 1,
    balance: bool = False,
) -> TrainBatch:
    """Build the batch of one optimizer step.

    Args:
        samples: the global batch.
        mean, constant: see `token_weights`.
        micro_batch_size: samples per micro-batch; used when `max_tokens` is None.
        max_tokens: token budget of a micro-batch (`--max-tokens-per-gpu` under `--use-dynamic-batch-size`).
        share_prompts: keep samples of a group together, and count their prompt once.
        skipped: indices of samples that need no computation; they count in `weights` all the same.
        ranks: data-parallel ranks; see `TrainBatch.of_rank`.
        balance: spread the samples over the ranks by their tokens (`--balance-data`), whole groups where prompts are
            shared. With `max_tokens`, the waiting of a rank in all rounds together is then at most the time of the
            longest sample or group. Without it every rank gets as many samples, in their order, and packs its own.
    """
    if not samples:
        raise ArgumentError("A training batch needs at least one sample; the rollout returned none.")
    order = [i for i in range(len(samples)) if i not in skipped]
    packing = MicroBatching(samples, micro_batch_size, max_tokens, share_prompts)
    micro_batches = packing.spread(order, ranks) if balance and ranks > 1 else packing.deal(order, ranks)
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


@dataclass(frozen=True)
class MicroBatching:
    """How samples become micro-batches. The attributes are arguments of `make_train_batch`."""

    samples: Sequence[Sample]
    micro_batch_size: int
    max_tokens: int | None
    share_prompts: bool

    def deal(self, order: Sequence[int], ranks: int) -> list[list[int]]:
        """Every rank gets its stretch of `order` and packs it; a rank with fewer micro-batches ends with empty ones."""
        count = len(order)
        stretches = (order[r * count // ranks : (r + 1) * count // ranks] for r in range(ranks))
        packed = [self._pack(stretch) for stretch in stretches]
        return [own[k] if k < len(own) else [] for k in range(max(map(len, packed))) for own in packed]

    def spread(self, order: Sequence[int], ranks: int) -> list[list[int]]:
        """The longest first, each where least has been put so far; the micro-batches of a round have similar lengths."""
        units = self._units(order, ranks)
        loads = [self._tokens(unit) for unit in units]
        sizes, room = loads, self.max_tokens
        if room is None:
            sizes, room = [len(unit) for unit in units], self.micro_batch_size
        bins = -(-len(pack_by_tokens(sizes, room)) // ranks) * ranks
        while (packed := spread_by_tokens(loads, sizes, room, bins)) is None:
            bins += ranks
        packed.sort(key=lambda numbers: -sum(loads[n] for n in numbers))
        return [sorted(i for number in numbers for i in units[number]) for numbers in packed]

    def _pack(self, order: Sequence[int]) -> list[list[int]]:
        if self.max_tokens is None:
            size = self.micro_batch_size
            return [list(order[i : i + size]) for i in range(0, len(order), size)]
        units = self._units(order, 1)
        packed = pack_by_tokens([self._tokens(unit) for unit in units], self.max_tokens)
        return [sorted(i for number in numbers for i in units[number]) for numbers in packed]

    def _units(self, order: Sequence[int], ranks: int) -> list[list[int]]:
        """What is packed whole: samples, or runs with a common prompt, cut where they would exceed a micro-batch or a
        rank's part of the batch."""
        if not self.share_prompts:
            return [[i] for i in order]
        runs = shared_runs(self.samples, order)
        part = -(-sum(map(self._tokens, runs)) // ranks)
        tokens = part if self.max_tokens is None else min(part, self.max_tokens)
        count = self.micro_batch_size if self.max_tokens is None else len(order)
        units: list[list[int]] = []
        for run in runs:
            unit: list[int] = []
            for index in run:
                if unit and (len(unit) == count or self._tokens([*unit, index]) > tokens):
                    units.append(unit)
                    unit = []
                unit.append(index)
            units.append(unit)
        return units

    def _tokens(self, unit: Sequence[int]) -> int:
        samples = self.samples
        if not self.share_prompts:
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


def spread_by_tokens(loads: Sequence[int], sizes: Sequence[int], room: int, bins: int) -> list[list[int]] | None:
    """Spread items over `bins` bins: the longest first, each to the bin with the least load that has room for it.

    Args:
        loads: tokens per item.
        sizes: how much of its bin's room an item takes. One that is larger than `room` gets a bin of its own.

    Returns:
        item numbers per bin, or None where an item found no room. Where `sizes` are the loads, or the room never ran
        out, the loads of two bins differ by at most the longest item (Graham 1969).
    """
    found: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0, number, 0) for number in range(bins)]  # (load, bin, room taken), the least load on top
    for item in sorted(range(len(loads)), key=lambda i: (-loads[i], i)):
        full: list[tuple[int, int, int]] = []
        while heap and found[heap[0][1]] and heap[0][2] + sizes[item] > room:
            full.append(heapq.heappop(heap))
        if not heap:
            return None
        load, number, taken = heap[0]
        found[number].append(item)
        heapq.heapreplace(heap, (load + loads[item], number, taken + sizes[item]))
        for entry in full:
            heapq.heappush(heap, entry)
    return found
