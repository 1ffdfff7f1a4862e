"""Keeps the memory that one training step frees for the next one. Train backends call it once, on the CPU.

glibc gives large blocks back to the system at once and gets them again, page by page and cleared, in every step: about
a million page faults a step for a model of 135 million parameters.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h


def keep_freed_memory() -> bool:
    """Tell the allocator of this process to keep what is freed; False where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
