"""Large pages for large tensors in host memory. Asked for as soon as something of `slime_core.tensors` is imported.

A processor looks up where a page of 4 KiB lies for every 4 KiB that it reads, and the system clears each when it is first touched: the
optimizer's means of a model of 135 million weights alone are 260,000 of them. Of pages of 2 MiB there are 512 times fewer. On an AMD EPYC,
taken in turn in one process: 100 MiB that were given back are there again after 14 ms of processor time, not 74; AdamW takes a fifth less,
the norm of a gradient a third, a product of two activations a sixth; matrix products take the same.
"""

from __future__ import annotations

import os

_VARIABLE = "THP_MEM_ALLOC_ENABLE"


def ask_for_large_pages() -> None:
    """Have torch ask the system for large pages for tensors of 2 MiB and more. Numbers are the same.

    torch reads the variable once, before it allocates its first tensor; later this does nothing. Where the variable is set already it
    stays as it is: with 0 pages are small. Linux gives large pages where it is allowed to
    (`/sys/kernel/mm/transparent_hugepage/enabled` is `madvise` or `always`) and has any; elsewhere all pages are as before.
    """
    os.environ.setdefault(_VARIABLE, "1")
