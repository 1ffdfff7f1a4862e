"""What happens to memory that is freed, on the CPU: one step keeps it for the next.

glibc gives large blocks back to the system at once and gets them again, page by page and cleared, in every step: about
a million page faults a step for a model of 135 million parameters. And it keeps what each thread frees for that thread, in
heaps of 64 MiB, which hold no larger block. Where trainer and engine take turns in one process, the one takes what the other has
freed, on whatever thread they run.
"""

from __future__ import annotations

import ctypes
from typing import Literal

Part = Literal["train backend", "engine"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8  # from malloc.h
_HEAP = 2**26
"""The largest heap of a thread that does not share the first one's: where so much is asked for beyond the need, one that is free as a whole is kept."""
_KEEP = ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, _HEAP))

ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""The environment of a process that shall do `share_one_heap` for all its threads."""

_parts: set[Part] = set()
"""What computes in this process."""


def share_one_heap() -> bool:
    """Let every thread that begins from here on take memory from the heap of the first one; False where the C library has no such
    setting. To be called before the thread begins that will compute, whose heap is settled by the first block that it asks for, and
    before many threads have begun: after that the C library takes no notice. `ONE_HEAP` is for processes that begin with many."""
    return _set((_M_ARENA_MAX, 1))


def keep_freed_memory(part: Part) -> bool:
    """Tell the allocator of this process to keep what is freed; False where the C library has no such setting. Train backends
    and the embedded engine call it before they load a model. On a thread that began before `share_one_heap`, what is larger than 64 MiB
    is given back to the system all the same."""
    _parts.add(part)
    return share_one_heap() and _set(*_KEEP)


def give_back_freed_memory() -> None:
    """Give back to the system what is free now, also between blocks that are in use, for another process that is about to need it. Does
    nothing where train backend and engine are in one process, nor where the C library cannot.

    It takes 0.1 s for a GiB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None and len(_parts) < 2:
        trim(0)


def _set(*settings: tuple[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*setting) for setting in settings)
