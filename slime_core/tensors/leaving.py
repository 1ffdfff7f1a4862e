"""How a process leaves the groups in which it exchanged tensors. Called by `ranks`, and by train backends that make groups of
their own.

gloo's threads let go of the tensors of an exchange some time after it is over, and may need Python for that. On a busy machine one
of them may be so late that Python is ending meanwhile, and then it ends the process by a signal. That a group is destroyed does not
help: gloo waits for its threads only when nobody refers to the group any more, and FSDP does, in every layer.
"""

from __future__ import annotations

import sys
import threading
import time

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

_LATE_S = 5.0
"""How long a thread of gloo may take. One that waits for a rank that is gone takes as long as an exchange may."""


def leave_groups() -> None:
    """Leave all process groups, if this process is in any, when gloo's threads hold no tensor any more. No other rank needs to do
    the same at this time."""
    if not dist.is_initialized():
        return
    for group in list(distributed_c10d._world.pg_map):
        _wait_for_threads(group)
    dist.destroy_process_group()


def _wait_for_threads(group: dist.ProcessGroup) -> None:
    """Wait until gloo's threads, if the group has any, have let go of what was exchanged."""
    if not dist.is_gloo_available():
        return
    from torch._C._distributed_c10d import ProcessGroupGloo

    try:
        backend = group._get_backend(torch.device("cpu"))
    except RuntimeError:  # of GPUs alone
        return
    if not isinstance(backend, ProcessGroupGloo):
        return
    threads: int = getattr(backend.options, "_threads", 0)  # private to torch
    here, free = threading.get_ident(), threading.Event()
    stopped: set[int] = set()

    def stop(_: object) -> None:
        if threading.get_ident() != here:  # which it is where the exchange was over already
            stopped.add(threading.get_ident())
            free.wait(_LATE_S)

    nothing = torch.empty(0)  # to exchange it takes no other rank
    held = sys.getrefcount(nothing), sys.getrefcount(stop)
    last = time.monotonic() + _LATE_S
    # A thread that stops is at one of these exchanges, so it has let go of those before.
    while len(stopped) < threads and time.monotonic() < last:
        dist.all_reduce(nothing, group=group, async_op=True).get_future().then(stop)
        time.sleep(0.01)
    free.set()
    while (sys.getrefcount(nothing), sys.getrefcount(stop)) != held and time.monotonic() < last:
        time.sleep(0.001)
