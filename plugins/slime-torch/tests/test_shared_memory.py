"""What ranks give each other through shared memory arrives whole, in pieces of any number, and is added up in their order.

The ranks are threads here, which tell each other by a barrier; real ones are in test_torch_ranks.py.
"""

from __future__ import annotations

import mmap
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from slime_torch import shared_memory
from slime_torch.shared_memory import SharedMemory


@dataclass(frozen=True)
class Group:
    """One rank's view of a group."""

    number: int
    count: int
    barrier: threading.Barrier

    def rank(self) -> int:
        return self.number

    def size(self) -> int:
        return self.count


def on_all(count: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[SharedMemory, Any], Any]) -> list[Any]:
    """What `act` returns on each of some ranks, none of which is as fast as the others for long."""

    def swap(sent: Sequence[Tensor], received: Sequence[Tensor], group: Group) -> None:
        time.sleep(random.random() / 1000)
        group.barrier.wait(20)

    monkeypatch.setattr(shared_memory, "SLOT", 1024)
    monkeypatch.setattr(shared_memory, "SIZE", shared_memory.ALIGNMENT + 2 * 1024)
    monkeypatch.setattr(shared_memory, "swap", swap)
    segments, barrier = [mmap.mmap(-1, shared_memory.SIZE) for _ in range(count)], threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda r: act(SharedMemory(segments), Group(r, count, barrier)), range(count)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_rank_has_what_all_gave(monkeypatch: pytest.MonkeyPatch, count: int, dtype: torch.dtype) -> None:
    sizes = [1, 255, 256, 257, 3001, 0, 511]

    def act(memory: SharedMemory, group: Group) -> list[list[Tensor]]:
        found = []
        for size in sizes:
            received = [torch.zeros(size, dtype=dtype) for _ in range(count)]
            memory.gather(own(size, group.rank()), received, group)  # type: ignore[arg-type]  # it has what is read
            found.append(received)
        return found

    def own(size: int, rank: int) -> Tensor:
        return ((torch.arange(size) * 7 + 11 * rank) % 127).to(dtype)

    for rank, found in enumerate(on_all(count, monkeypatch, act)):
        for size, received in zip(sizes, found, strict=True):
            for other, tensor in enumerate(received):
                assert other == rank or torch.equal(tensor, own(size, other)), (rank, size, other)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_sums_are_those_of_the_parts_in_the_order_of_the_ranks(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    sizes = [1, 15, 16, 17, 1000, 0, 33]
    numbers = {size: torch.randn(count, count, size) for size in sizes}  # from, to

    def act(memory: SharedMemory, group: Group) -> list[Tensor]:
        found = []
        for size in sizes:
            total = torch.zeros(size)
            memory.add(list(numbers[size][group.rank()]), total, group)  # type: ignore[arg-type]  # likewise
            found.append(total)
        return found

    for rank, found in enumerate(on_all(count, monkeypatch, act)):
        for size, total in zip(sizes, found, strict=True):
            expected = numbers[size][0, rank].clone()
            for other in range(1, count):
                expected += numbers[size][other, rank]
            assert torch.equal(total, expected), (rank, size)
