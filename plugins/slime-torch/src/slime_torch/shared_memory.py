"""Ranks of one machine give each other numbers through memory that they share. Used by `sharding`, in place of the
network.

Through the loopback interface every number is copied into the kernel and out of it, and threads of gloo wait for each
other while it is. Here a rank copies what it gives into a segment of its own, and the others read it there, while it is
still in the processor's cache.

A segment has two slots. What is longer than a slot passes in pieces, one through each slot in turn. A rank that has
written a piece tells the others so, by a message of gloo, and reads theirs when they have told it. Whoever tells that it
has written a piece has read the one before, whose slot is therefore free for the next. A rank that died, or does not
come, is noticed as it is on the network.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from slime_torch.gloo import Network, add_up, swap

SLOT = 8 * 2**20
"""Bytes. The slots of a few ranks fit into the last cache of a processor."""
ALIGNMENT = 64
"""Bytes: where a part of a slot may begin. The first ones of a segment hold its name."""
SIZE = ALIGNMENT + 2 * SLOT
FILE = "slime-ranks"


class SharedMemory(Network):
    """The way between ranks of one machine; see `between`.

    Args:
        segments: of all ranks of the group, in their order.
    """

    def __init__(self, segments: Sequence[mmap.mmap]) -> None:
        self._slots = [
            [torch.frombuffer(segment, dtype=torch.uint8, count=SLOT, offset=ALIGNMENT + n * SLOT) for n in range(2)]
            for segment in segments
        ]
        self._passed = 0

    def gather(self, own: Tensor, received: Sequence[Tensor], group: dist.ProcessGroup) -> None:
        """As on the network."""
        rank = group.rank()
        for place in self._pieces(own, SLOT):
            self._slot(rank, 0, own[place]).copy_(own[place])
            self._tell(group)
            for other, to in enumerate(received):
                if other != rank:
                    to[place].copy_(self._slot(other, 0, to[place]))

    def add(self, given: Sequence[Tensor], total: Tensor, group: dist.ProcessGroup) -> None:
        """As on the network, to the last digit."""
        rank = group.rank()
        room = SLOT // len(given) // ALIGNMENT * ALIGNMENT
        for place in self._pieces(total, room):
            for other, part in enumerate(given):
                if other != rank:
                    self._slot(rank, other * room, part[place]).copy_(part[place])
            self._tell(group)
            parts = [self._slot(other, rank * room, total[place]) for other in range(len(given))]
            parts[rank] = given[rank][place]
            add_up(parts, total[place])

    def _pieces(self, tensor: Tensor, room: int) -> Iterator[slice]:
        """The pieces of at most `room` bytes of which a tensor consists. Each has another slot than the one before."""
        count = room // tensor.element_size()
        for start in range(0, len(tensor), count):
            yield slice(start, start + count)
            self._passed += 1

    def _slot(self, rank: int, offset: int, like: Tensor) -> Tensor:
        """The numbers in the slot of this piece in the segment of a rank, from a byte on: as many as `like` has."""
        numbers = self._slots[rank][self._passed % 2][offset : offset + like.nbytes]
        return numbers.view(like.dtype)

    def _tell(self, group: dist.ProcessGroup) -> None:
        """Tell the other ranks that this one has written its piece, and wait until they have told it of theirs."""
        words = [torch.zeros(1, dtype=torch.uint8) for _ in range(group.size())]
        swap([torch.ones(1, dtype=torch.uint8)] * group.size(), words, group)


@dataclass(frozen=True)
class _Segment:
    """What the others need to know of a rank's segment.

    Attributes:
        machine: on which it is, until that is started anew.
        process, file: where it is found.
        name: what it begins with, so that nothing else is taken for it.
    """

    machine: str
    process: int
    file: int
    name: bytes

    def open(self) -> mmap.mmap:
        """Raises:
        OSError: it is not on this machine, or in a container of its own.
        """
        if self.machine != _machine():
            raise OSError("another machine")
        path = f"/proc/{self.process}/fd/{self.file}"
        if FILE not in os.readlink(path):
            raise OSError("another process")
        file = os.open(path, os.O_RDWR)
        try:
            segment = mmap.mmap(file, SIZE)
        except ValueError as error:  # it is smaller
            raise OSError("another segment") from error
        finally:
            os.close(file)
        if segment[: len(self.name)] != self.name:
            raise OSError("another segment")
        return segment


def between(group: dist.ProcessGroup) -> SharedMemory | None:
    """The memory that the ranks of a group share; None where they do not see each other's: on several machines, in
    several containers, on a system without such files. All ranks call this at the same time, and get the same answer."""
    name = os.urandom(ALIGNMENT)
    try:
        file = os.memfd_create(FILE)
    except (AttributeError, OSError):  # only Linux has it
        file = -1
    try:
        if file >= 0:
            os.ftruncate(file, SIZE)
            os.pwrite(file, name, 0)
        found: list[_Segment] = [None] * group.size()  # type: ignore[list-item]  # filled at once
        dist.all_gather_object(found, _Segment(_machine(), os.getpid(), file, name), group=group)
        try:
            segments = [segment.open() for segment in found]
        except OSError:
            segments = []
        reached = [False] * group.size()
        dist.all_gather_object(reached, bool(segments), group=group)
    finally:
        if file >= 0:
            os.close(file)  # the memory stays as long as it is mapped
    return SharedMemory(segments) if all(reached) else None


def _machine() -> str:
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text() if file.exists() else ""
