"""Host memory from which a GPU reads, and into which it writes, at the full speed of its bus: pinned, taken from the system fast, and kept.
Called by `slime_core.tensors.offload`.

CUDA's own way to pinned memory (`cudaHostAlloc`) gives 2.2 GB/s on the machine with an H200, also to several threads at once, where
a copy then runs at 50: the system clears page after page. Here several threads have pages cleared, large ones where the system has
them, of memory that CUDA is then told to pin (`cudaHostRegister`). Blocks are kept for whoever moves something next, in this process, and
never given back to the system.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from threading import Lock

import numpy
import torch
from torch import Tensor

BLOCK = 2**28
"""Bytes of the largest block."""
PAGE = 2**21
"""Bytes of a large page, of which blocks are multiples."""
THREADS = 8
"""That touch the pages of a block."""

_log = logging.getLogger(__name__)


class HostMemory:
    """Blocks of pinned memory, taken and given back.

    Args:
        pin: makes a block of so many bytes.
    """

    def __init__(self, pin: Callable[[int], Tensor]) -> None:
        self._pin, self._lock = pin, Lock()
        self._free: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """A block for at least so many bytes, or of `BLOCK` where that is less: the smallest one that is free, or a new one."""
        wanted = min(size, BLOCK)
        with self._lock:
            fitting = [block for block in self._free if len(block) >= wanted]
            if fitting:
                found = min(fitting, key=len)
                self._free = [block for block in self._free if block is not found]
                return found
        return self._pin(-(-wanted // PAGE) * PAGE)

    def blocks(self, size: int) -> Iterator[Tensor]:
        """Blocks for so many bytes together, each as soon as it is there: pages of the next are cleared while CUDA pins one."""
        sizes = [BLOCK] * (size // BLOCK) + [size % BLOCK] * bool(size % BLOCK)
        with ThreadPoolExecutor(2) as threads:
            yield from threads.map(self.take, sizes)

    def give_back(self, blocks: Sequence[Tensor]) -> None:
        """Keep blocks for others. No copy from or to them may be under way."""
        with self._lock:
            self._free += blocks


def pinned(size: int) -> Tensor:
    """So many bytes of new pinned memory, which stays as long as the process: registered with CUDA, or if that fails as torch takes it."""
    if not _refused() and not _register(block := cleared(size)):
        return block
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


@cache
def _refused() -> str:
    """Why memory cannot be registered with CUDA here, tried with a page; "" if it can."""
    block = cleared(PAGE)
    try:
        why = _register(block) or ("" if _arrives(block) else "what the GPU writes there does not arrive")
    except RuntimeError as error:
        why = str(error)
    if why:
        _log.warning(
            "Host memory is taken from CUDA, which is slow the first time, since it cannot be registered: %s", why
        )
    return why


def _register(block: Tensor) -> str:
    """Pin a block. Returns what CUDA has against it."""
    try:
        status = torch.cuda.cudart().cudaHostRegister(block.data_ptr(), len(block), 0)  # type: ignore[no-untyped-call]  # torch does not annotate it
    except (AttributeError, RuntimeError, TypeError) as error:
        _forget_error()
        return f"{type(error).__name__}: {error}"
    if int(status) != 0:
        _forget_error()
        return f"cudaHostRegister returned {int(status)}"
    _registered.append(block)
    return ""


def cleared(size: int) -> Tensor:
    """So many bytes of host memory that lie in the machine, in large pages where the system allows it: several threads have touched them."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # the system has none
            memory.madvise(mmap.MADV_HUGEPAGE)
    touched = numpy.frombuffer(memory, numpy.uint8)[:: mmap.PAGESIZE]
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda part: part.fill(0), numpy.array_split(touched, THREADS)))
    return torch.frombuffer(memory, dtype=torch.uint8)


def _arrives(block: Tensor) -> bool:
    """Whether a block is pinned, and what a GPU writes there arrives."""
    sent = torch.arange(PAGE // 8, device="cuda").view(torch.uint8)
    block[: len(sent)].copy_(sent, non_blocking=True)
    torch.cuda.synchronize()
    return block.is_pinned() and torch.equal(block[: len(sent)], sent.cpu())


def _forget_error() -> None:
    """What failed stays CUDA's last error until somebody asks for it: the next kernel, which would be blamed for it."""
    with suppress(RuntimeError):
        torch.zeros(1, device="cuda").add_(1)


_registered: list[Tensor] = []
"""Memory that CUDA has pinned must not be unmapped."""
HOST_MEMORY = HostMemory(pinned)
"""That of this process."""
