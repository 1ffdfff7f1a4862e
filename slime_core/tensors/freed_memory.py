"""What happens to memory that is freed, on the CPU: one step keeps it for the next, and an engine that waits gives it back.

glibc gives large blocks back to the system at once and gets them again, page by page and cleared, in every step: about
a million page faults a step for a model of 135 million parameters.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # from malloc.h
_HEAP = 2**26
"""The largest heap of a thread other than the first: one that is free as a whole is kept where so much is asked for beyond the need."""


def keep_freed_memory() -> bool:
    """Tell the allocator of this process to keep what is freed; False where the C library has no such setting. Train backends
    and the embedded engine call it once."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, _HEAP))
    return mallopt is not None and all(mallopt(*setting) for setting in settings)


def give_back_freed_memory() -> None:
    """Give back to the system what is free now, also between blocks that are in use. Does nothing where the C library cannot.

    It takes 0.1 s for a GiB. An engine calls it when another part of the process is about to need as much, in other pieces.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
