"""Writes a described state into a folder: at once, or by a forked process while training goes on.

megatron-core plans what each rank writes, and names the files; it collects the results, and writes `.metadata`, when all ranks
have written. What is its own here is who writes: megatron-core forks processes for every save, of which each may be left over,
and starts a further one that passes on what they found. Here a state that is written at once is written by this process, on
threads, and one in the background by one forked process, which ends with this one, however that ends.

The forked process has the memory as it was when it was forked, so what training changes afterwards is not in the checkpoint. It
touches nothing but host memory and files: no process group, no device, no thread of torch's.

`slime_megatron.state` calls a `Saver`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import queue
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import serialization
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from torch.distributed.checkpoint.api import CheckpointException

from slime_megatron import versions

_PR_SET_PDEATHSIG = 1  # of prctl(2)


class Saver:
    """Writes the states of one model, one at a time. All ranks make the same calls."""

    def __init__(self) -> None:
        self._calls = AsyncCallsQueue()

    def save(self, folder: Path, described: dict[str, Any], background: bool) -> None:
        """Write a sharded state dict into the existing folder. A state that is still being written is waited for.

        Args:
            background: return as soon as a process is there that writes; `saved` then tells whether it has.

        Raises:
            OSError, RuntimeError: it could not be written, on this rank or on another one.
        """
        self.saved()
        serialization.logger.addFilter(_is_of_use)
        versions.write_states_by(_write, _Results)
        versions.advise_no_other_format()
        settings = {"validate_access_integrity": False, "async_sharded_save": background, **versions.files_as_before()}
        with _as_its_cause():
            request = dist_checkpointing.save(described, str(folder), **settings)
            if request is not None:
                own = request.async_fn and partial(_write_and_end, os.getpid(), request.async_fn)
                self._calls.schedule_async_request(request._replace(async_fn=own))

    def saved(self, wait: bool = True) -> bool:
        """Whether the last state is on disk, the same answer on all ranks.

        Args:
            wait: return when it is.

        Raises:
            OSError, RuntimeError: it could not be written. This is raised once for each state.
        """
        with _as_its_cause():
            self._calls.maybe_finalize_async_calls(blocking=wait)
        left: int = self._calls.get_num_unfinalized_calls()
        return left == 0

    def close(self) -> None:
        """End the process that still writes, if there is one: nobody waits for its checkpoint any more."""
        for call in self._calls.async_calls:
            process = call.async_caller.process
            call.async_caller.close(abort=True)
            if process is not None:
                process.join()
        self._calls.async_calls.clear()


def _is_of_use(record: logging.LogRecord) -> bool:
    """Whether what megatron-core logs is: folders are new here, and those that are not empty hold copies of weights, not what is left of
    another checkpoint."""
    return not str(record.msg).startswith("Overwriting old incomplete")


class _as_its_cause:
    """Around a save: raise what kept a rank from writing in place of torch's exception, which is no `Exception`."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, CheckpointException):
            return
        for failure, _ in error.failures.values():
            cause = failure.__cause__ or failure
            raise (cause if isinstance(cause, (OSError, RuntimeError)) else RuntimeError(repr(cause))) from error
        raise RuntimeError("another rank could not write its part; its log says why") from error


class _Results:
    """What a writing process found, for the process that it was forked from: in a file without a name, which takes any amount
    before it is read, and is gone with the last process that has it open."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as this is there

    def put(self, found: Any) -> None:
        pickle.dump(found, self._file)
        self._file.flush()

    def get_nowait(self) -> Any:
        self._file.seek(0)
        try:
            return pickle.load(self._file)
        except EOFError:
            return RuntimeError("the process that wrote it ended before it was done; it may have been out of memory")


class _Ignored:
    """The count of busy processes that megatron-core keeps; here a thread is waited for itself."""

    def get(self) -> None: ...

    def task_done(self) -> None: ...


def _write(transforms: Any, cloud: bool, rank: int, buckets: Sequence[Any], results: Any) -> None:
    """Write one file for each bucket, on a thread each, and report what is where, or what went wrong.

    The parameters are those of `FileSystemWriterAsync.write_preloaded_data_multiproc`.
    """
    found: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    write: Callable[..., None] = FileSystemWriterAsync.write_preloaded_data
    settings = {"results_queue": found, "count_queue": _Ignored(), "use_fsync": True, "use_msc": cloud}
    with ThreadPoolExecutor(len(buckets)) as threads:
        for number, bucket in enumerate(buckets):
            threads.submit(write, transforms, local_proc_idx=number, write_bucket=bucket, **settings)
    written = dict(found.get_nowait() for _ in range(found.qsize()))
    failed = [outcome for outcome in written.values() if isinstance(outcome, Exception)]
    results.put(failed[0] if failed else written)


def _write_and_end(parent: int, write: Callable[..., None], *arguments: Any) -> None:
    """What the forked process does: write, and end, with the process that it was forked from if that ends before."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the run, which ends this process by `Saver.close`
    if os.getppid() == parent:
        write(*arguments)
