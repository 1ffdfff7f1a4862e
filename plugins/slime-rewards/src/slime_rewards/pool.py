"""Grades in processes of their own, with a time limit for every answer, for `math` and `reasoning_gym`.

Checking a mathematical answer may take for ever, or take the process down, and nothing inside the process can stop it.
So it happens in a few worker processes (`slime_rewards.worker`) that start with the first answer, import only what
grading needs, and are replaced when they end. Each is driven by a thread, so that a pool serves coroutines of any event
loop.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from slime_core.errors import PluginError
from slime_core.plugins.clock import waiting

logger = logging.getLogger(__name__)


class Ungradable(Exception):
    """This answer cannot be graded: it takes too long, or grading it raises."""


@dataclass(eq=False)
class Job:
    """One call: what it is called with, when a worker process has it, and what comes back."""

    arguments: tuple[Any, ...]
    begun: Future[None] = field(default_factory=Future)
    result: Future[Any] = field(default_factory=Future)


async def _begun(job: Job) -> None:
    """Wait until a worker process has the job. Whoever stops waiting takes it out of the queue."""
    try:
        await asyncio.shield(asyncio.wrap_future(job.begun))
    except asyncio.CancelledError:
        job.result.cancel()
        raise


class GradingPool:
    """Calls one function in worker processes.

    Args:
        target: "package.module:function"; the function takes and returns plain JSON data.
        workers: how many processes.
        seconds: limit for one call, in processor time.

    Attributes:
        graded, ungradable: how many answers were asked for, and how many of them got none.
    """

    def __init__(self, target: str, workers: int, seconds: float) -> None:
        self.target, self.workers, self.seconds = target, workers, seconds
        self.graded = self.ungradable = 0
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    async def grade(self, *arguments: Any, item: str) -> Any:
        """Call the function in a worker process and return its result, or None when that cannot be had, which is counted and
        logged. `item` says in the log what was graded. The time in the queue is no work of the reward that asks.

        Raises:
            PluginError: the worker could not start, or ended without having been told to (nobody knows whose fault that
                is, so the caller may try again; a new worker takes its place).
        """
        self.graded += 1
        try:
            job = self._submit(arguments)
            with waiting():
                await _begun(job)
            return await asyncio.wrap_future(job.result)
        except Ungradable as error:
            self.ungradable += 1
            logger.warning(
                "%s: its answer counts as wrong, because grading it %s (%d of %d answers so far).",
                *(item, error, self.ungradable, self.graded),
            )
            return None

    def close(self) -> None:
        """End all workers, busy ones too, and wait until they are gone."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, []
            for process in self._processes:
                process.kill()
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join()

    def _submit(self, arguments: tuple[Any, ...]) -> Job:
        """Queue one call, and start another thread if there are fewer than `workers`."""
        job = Job(arguments)
        with self._lock:
            if self._closed:
                raise PluginError(f"The grading processes of {self.target} are closed.")
            self._jobs.put(job)
            if len(self._threads) < self.workers:
                name = f"grading-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._serve, name=name, daemon=True))
                self._threads[-1].start()
        return job

    def _serve(self) -> None:
        """Serve queued calls, with one worker process at a time, until None is queued. Runs in a thread."""
        process: subprocess.Popen[bytes] | None = None
        while (job := self._jobs.get()) is not None:
            if not job.result.set_running_or_notify_cancel():
                continue
            try:
                if process is None or process.poll() is not None:
                    self._forget(process)
                    process = self._start()
                job.begun.set_result(None)
                job.result.set_result(_ask(process, job.arguments, self.seconds))
            except BaseException as error:
                job.result.set_exception(error)
                if not job.begun.done():
                    job.begun.set_result(None)
        self._forget(process)

    def _start(self) -> subprocess.Popen[bytes]:
        """Start a worker process, and return it when it has finished its imports."""
        command = [sys.executable, "-W", "ignore", "-m", "slime_rewards.worker", self.target, str(self.seconds)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        with self._lock:
            if self._closed:
                raise PluginError(f"The grading processes of {self.target} are closed.")
            process = subprocess.Popen(
                command,
                stdin=pipe,
                stdout=pipe,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C and the like are for this process, which ends that one by closing its input
            )
            self._processes.add(process)
        try:
            _read(process, f"cannot start: its imports took too long ({self.target})")
        except (Ungradable, PluginError) as error:
            self._forget(process)
            if isinstance(error, PluginError):
                raise
            raise PluginError(f"A grading process of {self.target} cannot start: {error}") from None
        return process

    def _forget(self, process: subprocess.Popen[bytes] | None) -> None:
        """End a worker process, if there is one, and give back its pipes."""
        if process is None:
            return
        process.kill()
        # Leaving the block closes the pipes and waits; what the process was not sent cannot be sent any more.
        with suppress(BrokenPipeError), process:
            pass
        with self._lock:
            self._processes.discard(process)


def _ask(process: subprocess.Popen[bytes], arguments: tuple[Any, ...], seconds: float) -> Any:
    """Have a worker process call the function, and return the result. Raises as `_read` does."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has just ended; reading tells why
        process.stdin.write(json.dumps(arguments).encode() + b"\n")
        process.stdin.flush()
    return _read(process, f"took more than {seconds:g} s")


def _read(process: subprocess.Popen[bytes], too_long: str) -> Any:
    """Read one answer of a worker process.

    Raises:
        Ungradable: the function raised, or the time limit ended the process (then the text is `too_long`).
        PluginError: the process ended in some other way.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        status = process.wait()
        if status in (-signal.SIGALRM, -signal.SIGPROF):
            raise Ungradable(too_long)
        raise PluginError(f"A grading process ended with status {status} while it was at work.")
    answer = json.loads(line)
    if "error" in answer:
        raise Ungradable(f"raised {answer['error']}")
    return answer["result"]


_pools: dict[tuple[int, str, int, float], GradingPool] = {}
_pools_lock = threading.Lock()


def shared_pool(target: str, workers: int, seconds: float) -> GradingPool:
    """Return the pool of this process for these values. It is made when it is first asked for and closed when the process
    ends."""
    key = (os.getpid(), target, workers, seconds)  # a forked child has neither the threads nor a right to the workers
    with _pools_lock:
        if key not in _pools:
            _pools[key] = GradingPool(target, workers, seconds)
        return _pools[key]


@atexit.register
def close_pools() -> None:
    """Close what `shared_pool` made in this process."""
    with _pools_lock:
        mine = [_pools.pop(key) for key in list(_pools) if key[0] == os.getpid()]
    for pool in mine:
        pool.close()
