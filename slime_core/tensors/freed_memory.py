"""What happens to memory that is freed, on the CPU: one step keeps it for the next.

glibc gives large blocks back to the system at once and gets them again, page by page and cleared, in every step: about
a million page faults a step for a model of 135 million parameters. And it keeps what each thread frees for that thread.
Where trainer and engine take turns in one process, the one takes what the other has freed, on whatever thread they run.
"""

from __future__ import annotations

import ctypes
from typing import Literal

Part = Literal["train backend", "engine"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8  # from malloc.h
_HEAP = 2**26
"""The largest heap of a thread other than the first: one that is free as a whole is kept where so much is asked for beyond the need."""
_SETTINGS = ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, _HEAP), (_M_ARENA_MAX, 1))

_parts: set[Part] = set()
"""What computes in this process."""


def keep_freed_memory(part: Part) -> bool:
    """Tell the allocator of this process to keep what is freed; False where the C library has no such setting. Train backends
    and the embedded engine call it before they load a model."""
    _parts.add(part)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*setting) for setting in _SETTINGS)


def give_back_freed_memory() -> None:
    """Give back to the system what is free now, also between blocks that are in use, for another process that is about to need it. Does
    nothing where train backend and engine are in one process, nor where the C library cannot.

    It takes 0.1 s for a GiB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None and len(_parts) < 2:
        trim(0)
