"""What happens to memory that is freed, on the CPU: one training step keeps it for the next, and an engine gives it back.

glibc gives large blocks back to the system at once and gets them again, page by page and cleared, in every step: about
a million page faults a step for a model of 135 million parameters.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h


def keep_freed_memory() -> bool:
    """Tell the allocator of this process to keep what is freed; False where the C library has no such setting. Train backends
    call it once."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def give_back_freed_memory() -> None:
    """Give back to the system what is free now, also between blocks that are in use. Does nothing where the C library cannot.

    It takes 0.1 s for a GiB. An engine calls it when another part of the process is about to need as much, in other pieces.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
