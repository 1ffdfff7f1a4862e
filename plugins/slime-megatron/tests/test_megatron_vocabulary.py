"""Log-probs and entropies over a vocabulary that is cut over ranks are those over the whole one, and so are their gradients.

The ranks are threads here, which add up what real ones add up over a process group.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slime_core.tensors.linear_cross_entropy import Head, Shard, token_log_probs


class Meeting:
    """Where the threads of one computation exchange tensors.

    Attributes:
        exchanges: how many exchanges there were.
    """

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks, timeout=30)
        self._brought: list[Tensor | None] = [None] * ranks
        self.exchanges = 0

    def combine_(self, rank: int, values: Tensor, how: Callable[[Tensor], Tensor]) -> Tensor:
        """Replace the values by what `how` makes of those of all ranks, stacked."""
        self._brought[rank] = values.clone()
        self._barrier.wait()
        shapes = {None if own is None else own.shape for own in self._brought}
        assert len(shapes) == 1, f"the ranks brought {shapes}"
        values.copy_(how(torch.stack([own for own in self._brought if own is not None])))
        self._barrier.wait()
        if rank == 0:
            self.exchanges += 1
        return values

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """What each rank's work returns."""
        with ThreadPoolExecutor(self._barrier.parties) as pool:
            futures = [pool.submit(work, rank) for rank in range(self._barrier.parties)]
            return [future.result() for future in futures]


@dataclass(frozen=True)
class ThreadShard(Shard):
    """A rank's rows, whose group are threads."""

    rank: int = 0

    def largest_(self, values: Tensor) -> Tensor:
        meeting: Any = self.group
        found: Tensor = meeting.combine_(self.rank, values, lambda all_of_them: all_of_them.amax(0))
        return found

    def sum_(self, values: Tensor) -> Tensor:
        meeting: Any = self.group
        found: Tensor = meeting.combine_(self.rank, values, lambda all_of_them: all_of_them.sum(0))
        return found


def problem(tokens: int, vocabulary: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Hidden states, weights, targets, and how much each log-prob and each entropy counts."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 6, generator=generator).to(dtype)
    weight = torch.randn(vocabulary, 6, generator=generator).to(dtype)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden, weight, targets, *(torch.randn(tokens, generator=generator).to(dtype) for _ in range(2))


def whole(made: tuple[Tensor, ...], temperature: float, cap: float | None, entropy: bool) -> list[Tensor]:
    """Log-probs, entropies and the gradients by hidden states and weights, from whole logits."""
    hidden, weight, targets, first, second = made
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = hidden @ weight.T
    logits = (logits if cap is None else cap * torch.tanh(logits / cap)) / temperature
    rows = torch.log_softmax(logits, -1)
    log_probs = rows.gather(1, targets[:, None])[:, 0]
    entropies = -(rows.exp() * rows).sum(1)
    loss = (log_probs * first).sum() + (entropies * second).sum() * entropy
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return [log_probs.detach(), entropies.detach(), hidden.grad, weight.grad]


def cut(
    made: tuple[Tensor, ...], ranks: int, rows: int, temperature: float, cap: float | None, entropy: bool, chunk: int
) -> tuple[list[list[Tensor]], Meeting]:
    """The same on each rank, of which each has so many rows of the weight; gradients of its own rows alone."""
    hidden, weight, targets, first, second = made
    meeting, vocabulary = Meeting(ranks), len(weight)
    padded = torch.cat([weight, weight.new_full((ranks * rows - vocabulary, weight.shape[1]), 1e3)])  # must not be seen

    def work(rank: int) -> list[Tensor]:
        known = max(0, min(rows, vocabulary - rank * rows))
        group: Any = meeting
        own = padded[rank * rows : (rank + 1) * rows].clone().requires_grad_()
        mine = hidden.clone().requires_grad_()
        head = Head(own, softcap=cap, shard=ThreadShard(rank * rows, known, group, rank))
        log_probs, entropies = token_log_probs(
            mine, head, targets, temperature=temperature, entropy=entropy, chunk_size=chunk
        )
        loss = (log_probs * first).sum()
        if entropies is not None:
            loss = loss + (entropies * second).sum()
        loss.backward()
        assert mine.grad is not None
        assert own.grad is not None
        return [log_probs.detach(), log_probs if entropies is None else entropies.detach(), mine.grad, own.grad]

    return meeting.run(work), meeting


def assert_equal(
    found: list[list[Tensor]], expected: list[Tensor], entropy: bool, rows: int, limit: float = 1e-12
) -> None:
    log_probs, entropies, by_hidden, by_weight = expected
    for own in found:
        torch.testing.assert_close(own[0], log_probs, rtol=limit, atol=limit)
        if entropy:
            torch.testing.assert_close(own[1], entropies, rtol=limit, atol=limit)
    summed = torch.stack([own[2] for own in found]).sum(0)
    torch.testing.assert_close(summed, by_hidden, rtol=limit, atol=limit)
    together = torch.cat([own[3] for own in found])
    torch.testing.assert_close(together[: len(by_weight)], by_weight, rtol=limit, atol=limit)
    assert not together[len(by_weight) :].any(), "rows that only fill up learn nothing"
    assert len(together) == rows * len(found)


@settings(max_examples=60)
@given(
    ranks=st.sampled_from([1, 2, 3, 4]),
    vocabulary=st.integers(1, 13),
    filling=st.integers(0, 9),
    tokens=st.integers(1, 9),
    chunk=st.sampled_from([-1, 1, 2, 4]),
    cap=st.sampled_from([None, 2.0]),
    temperature=st.sampled_from([1.0, 0.6]),
    entropy=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_vocabulary_that_is_cut_over_ranks_gives_the_same(
    ranks: int,
    vocabulary: int,
    filling: int,
    tokens: int,
    chunk: int,
    cap: float | None,
    temperature: float,
    entropy: bool,
    seed: int,
) -> None:
    rows = -(-(vocabulary + filling) // ranks)  # some ranks may have no token at all
    made = problem(tokens, vocabulary, seed)
    found, _ = cut(made, ranks, rows, temperature, cap, entropy, chunk)
    assert_equal(found, whole(made, temperature, cap, entropy), entropy, rows)


@pytest.mark.parametrize("entropy", [False, True])
def test_a_rank_without_any_token_takes_part(entropy: bool) -> None:
    made = problem(tokens=5, vocabulary=3, seed=0)
    found, _ = cut(made, ranks=4, rows=2, temperature=0.7, cap=None, entropy=entropy, chunk=2)
    assert_equal(found, whole(made, 0.7, None, entropy), entropy, rows=2)
    assert not found[3][2].any()
    assert not found[3][3].any()


def test_every_rank_has_the_very_same_numbers() -> None:
    made = problem(tokens=20, vocabulary=251, seed=1, dtype=torch.float32)
    found, _ = cut(made, ranks=4, rows=64, temperature=1.0, cap=None, entropy=True, chunk=7)
    for own in found[1:]:
        assert torch.equal(own[0], found[0][0])
        assert torch.equal(own[1], found[0][1])
    assert_equal(found, whole(made, 1.0, None, True), True, rows=64, limit=1e-4)


def test_logits_of_any_size_give_finite_numbers() -> None:
    hidden, weight, targets, first, second = problem(tokens=6, vocabulary=9, seed=2)
    made = (hidden * 1e3, weight, targets, first, second)
    found, _ = cut(made, ranks=3, rows=4, temperature=1.0, cap=None, entropy=True, chunk=-1)
    assert_equal(found, whole(made, 1.0, None, True), True, rows=4, limit=1e-9)
    assert all(tensor.isfinite().all() for own in found for tensor in own)


def test_one_rank_with_all_rows_gives_the_numbers_of_no_shard_bit_for_bit() -> None:
    made = problem(tokens=8, vocabulary=11, seed=3, dtype=torch.float32)
    (found,), _ = cut(made, ranks=1, rows=11, temperature=0.9, cap=2.0, entropy=True, chunk=3)
    hidden, weight, targets, first, second = made
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    log_probs, entropies = token_log_probs(
        hidden, Head(weight, softcap=2.0), targets, temperature=0.9, entropy=True, chunk_size=3
    )
    assert entropies is not None
    ((log_probs * first).sum() + (entropies * second).sum()).backward()
    for own, expected in zip(found, (log_probs, entropies, hidden.grad, weight.grad), strict=True):
        assert torch.equal(own, expected)


def test_ranks_exchange_little_for_each_chunk() -> None:
    """Twice in the forward pass; in the backward pass twice where the logits are computed again, which the last chunk's
    are not."""
    made = problem(tokens=8, vocabulary=11, seed=4)
    _, meeting = cut(made, ranks=2, rows=6, temperature=1.0, cap=None, entropy=True, chunk=2)
    assert meeting.exchanges == 4 * 2 + 3 * 2
