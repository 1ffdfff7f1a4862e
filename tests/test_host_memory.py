"""Pinned memory of the host is taken once and then kept, and what moves there comes back."""

from __future__ import annotations

import torch
from torch import Tensor

from slime_core.tensors.host_memory import BLOCK, PAGE, HostMemory, cleared


def test_blocks_are_reused_by_whoever_comes_next_and_are_no_larger_than_what_moves_there() -> None:
    made: list[int] = []

    def pin(size: int) -> Tensor:
        made.append(size)
        return torch.empty(size, dtype=torch.uint8)

    memory = HostMemory(pin)
    size = 2 * BLOCK + 3 * PAGE + 5
    first = list(memory.blocks(size))
    assert sorted(made, reverse=True) == [BLOCK, BLOCK, 4 * PAGE]
    assert sum(map(len, first)) - size < PAGE
    second = list(memory.blocks(PAGE))  # somebody else, while the first ones are in use
    assert made[3:] == [PAGE]
    memory.give_back([*first, *second])
    assert [len(block) for block in memory.blocks(PAGE)] == [PAGE], "the smallest that will do"
    again = list(memory.blocks(size))
    assert {block.data_ptr() for block in again} == {block.data_ptr() for block in first}
    assert len(made) == 4
    assert list(memory.blocks(0)) == []


def test_a_block_is_memory_that_can_be_written_and_stays_as_long_as_its_tensor() -> None:
    block = cleared(2 * PAGE)
    assert len(block) == 2 * PAGE
    assert not block.any()
    part = block[PAGE:].fill_(7)
    del block
    assert bool((part == 7).all())
