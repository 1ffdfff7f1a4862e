"""How the samples of a step are cut into micro-batches: packed, aligned to the ranks, and distributed over them. Called
by `make_train_batch`. Pure functions.

Without `--balance-data` (`micro_batches_in_order`):

    distribute   each rank gets a stretch of the samples, in their order
    pack         each rank's samples are packed into micro-batches
    align        every rank gets as many micro-batches as the one that has most

With it (`balanced_micro_batches`):

    pack         how many micro-batches are needed at least
    align        that number, raised to a multiple of the ranks
    distribute   the samples go, the one with most work first, to the micro-batch that has least

Invariants of the result: every index of `order` appears exactly once; no sample is cut; a sample longer than the token
budget stands alone; the order of the samples inside a micro-batch is ascending; the number of micro-batches is a
multiple of that of the ranks, and only with several ranks may some be empty. Rank r of N computes every N-th one from
the r-th on, so N neighbours are a *round* in which the ranks work at the same time and wait for each other.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from slime_core.contracts.train_backend import shared_runs
from slime_core.sample import Sample
from slime_core.token_arrays import num_tokens, num_trained
from slime_core.training.work import TOKENS, Work

MicroBatches = list[list[int]]
"""Per micro-batch the indices of its samples."""


@dataclass(frozen=True)
class Packing:
    """What fits into a micro-batch.

    Attributes:
        samples: those of the step, which indices refer to.
        micro_batch_size: so many samples; counts where `max_tokens` is None.
        max_tokens: as many samples as have so many tokens together.
        share_prompts: the prompt of neighbours with the same group and prompt counts once, and they are kept together.
        work: what is balanced.
    """

    samples: Sequence[Sample]
    micro_batch_size: int
    max_tokens: int | None
    share_prompts: bool
    work: Work = TOKENS

    def tokens(self, unit: Sequence[int]) -> int:
        """The tokens that are computed for the samples of a unit; see `units`."""
        samples = self.samples
        if not self.share_prompts:
            return sum(num_tokens(samples[i]) for i in unit)
        first = samples[unit[0]]
        return num_tokens(first) - first.response_length + sum(samples[i].response_length for i in unit)

    def load(self, unit: Sequence[int]) -> int:
        """The work that a unit is."""
        own = [self.samples[i] for i in unit]
        trained = sum(map(num_trained, own)) if self.work.trained else 0
        prompt = num_tokens(own[0]) - own[0].response_length
        return self.work.of_samples(prompt, [sample.response_length for sample in own], trained)


def micro_batches_in_order(packing: Packing, order: Sequence[int], ranks: int) -> MicroBatches:
    """Give every rank a stretch of `order`, of equal size where that is possible, and cut each into micro-batches."""
    count = len(order)
    stretches = (order[r * count // ranks : (r + 1) * count // ranks] for r in range(ranks))
    return align([pack(packing, stretch) for stretch in stretches])


def balanced_micro_batches(packing: Packing, order: Sequence[int], ranks: int) -> MicroBatches:
    """Spread the samples over micro-batches so that those of a round are about as much work."""
    parts = units(packing, order, ranks)
    loads = [packing.load(unit) for unit in parts]
    if packing.max_tokens is None:
        sizes, room = [len(unit) for unit in parts], packing.micro_batch_size
    else:
        sizes, room = [packing.tokens(unit) for unit in parts], packing.max_tokens
    bins = -(-len(pack_by_tokens(sizes, room)) // ranks) * ranks
    while (distributed := distribute(loads, sizes, room, bins)) is None:
        bins += max(1, bins // (_TRIED * ranks)) * ranks
    distributed.sort(key=lambda numbers: -sum(loads[n] for n in numbers))
    return _joined(distributed, parts)


_TRIED = 32
"""Of a larger number of rounds a part is added at once, so that as many tries suffice for any number of samples."""


def pack(packing: Packing, order: Sequence[int]) -> MicroBatches:
    """Cut `order` into the micro-batches of one rank, none of them empty: by the number of samples, or into few ones
    within the token budget."""
    if packing.max_tokens is None:
        size = packing.micro_batch_size
        return [list(order[i : i + size]) for i in range(0, len(order), size)]
    parts = units(packing, order)
    return _joined(pack_by_tokens([packing.tokens(unit) for unit in parts], packing.max_tokens), parts)


def align(of_ranks: Sequence[MicroBatches]) -> MicroBatches:
    """Put the micro-batches of all ranks into rounds: the first of each rank, then the second of each, and so on. A
    rank with fewer than the others ends with empty ones."""
    rounds = range(max(map(len, of_ranks)))
    return [own[k] if k < len(own) else [] for k in rounds for own in of_ranks]


def units(packing: Packing, order: Sequence[int], ranks: int = 1) -> MicroBatches:
    """Cut `order` into what is packed whole: single samples, or runs with a common prompt. A run that exceeds a
    micro-batch, or one rank's part of all tokens, is cut there."""
    if not packing.share_prompts:
        return [[i] for i in order]
    runs = shared_runs(packing.samples, order)
    part = -(-sum(map(packing.tokens, runs)) // ranks)
    most_tokens = part if packing.max_tokens is None else min(part, packing.max_tokens)
    most_samples = packing.micro_batch_size if packing.max_tokens is None else len(order)
    found: MicroBatches = []
    for run in runs:
        unit: list[int] = []
        tokens = 0
        for index in run:
            more = packing.samples[index].response_length if unit else packing.tokens([index])
            if unit and (len(unit) == most_samples or tokens + more > most_tokens):
                found.append(unit)
                unit, tokens, more = [], 0, packing.tokens([index])
            unit.append(index)
            tokens += more
        found.append(unit)
    return found


def _joined(bins: Iterable[Sequence[int]], parts: Sequence[Sequence[int]]) -> MicroBatches:
    """The samples of the units in each bin, ascending."""
    return [sorted(i for number in numbers for i in parts[number]) for numbers in bins]


def pack_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Pack sequences into as few bins of at most `max_tokens` tokens as first-fit-decreasing finds.

    A sequence longer than `max_tokens` gets a bin of its own. Deterministic: equal lengths keep their order. Bins are
    ordered by their smallest index.

    The first bin with room is found in a tree over all bins, in which every node knows the most room below it, so that n sequences take
    n · log n steps at most.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    alone = sum(length > max_tokens for length in lengths)
    bins = [[index] for index in order[:alone]]
    rest = order[alone:]
    bound = min(
        len(rest), 2 * sum(lengths[i] for i in rest) // max_tokens + 1
    )  # two neighbours hold more than `max_tokens`
    leaves = 1 << max(0, bound - 1).bit_length()
    most = [max_tokens] * (
        2 * leaves
    )  # `most[1]` is the root, the children of node n are 2n and 2n + 1; bin b is the leaf leaves + b
    packed: list[list[int]] = []
    for index in rest:
        length, node = lengths[index], 1
        while node < leaves:
            node *= 2
            if most[node] < length:
                node += 1
        if node == leaves + len(packed):
            packed.append([])
        packed[node - leaves].append(index)
        left = most[node] = most[node] - length
        while node > 1:
            beside = most[node ^ 1]
            node //= 2
            left = max(left, beside)
            if most[node] == left:
                break
            most[node] = left
    return sorted(sorted(b) for b in bins + packed)


def distribute(loads: Sequence[int], sizes: Sequence[int], room: int, bins: int) -> list[list[int]] | None:
    """Distribute items over `bins` bins: the heaviest first, each to the bin with the least load that has room for it.

    Args:
        loads: the work that each item is.
        sizes: how much of its bin's room an item takes. One that is larger than `room` gets a bin of its own.
        room: of each bin.

    Returns:
        item numbers per bin, or None where an item found no room. Where `sizes` are the loads, or the room never ran
        out, the loads of two bins differ by at most the heaviest item (Graham 1969).
    """
    found: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0, number, 0) for number in range(bins)]  # (load, bin, room taken), the least load on top
    order = sorted(range(len(loads)), key=lambda i: (-loads[i], i))
    smallest = list(accumulate(reversed([sizes[item] for item in order]), min))[::-1]  # of an item and all that follow
    for item, least in zip(order, smallest, strict=True):
        full: list[tuple[int, int, int]] = []
        while heap and found[heap[0][1]] and heap[0][2] + sizes[item] > room:
            entry = heapq.heappop(heap)
            if entry[2] + least <= room:  # else nothing that follows fits into it either
                full.append(entry)
        if not heap:
            return None
        load, number, taken = heap[0]
        found[number].append(item)
        heapq.heapreplace(heap, (load + loads[item], number, taken + sizes[item]))
        for entry in full:
            heapq.heappush(heap, entry)
    return found
