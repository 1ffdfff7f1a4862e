"""Workers behind handles. The loop sees only handles, so it does not know whether a worker is a thread or a process.

A worker is an object; a handle runs its methods and returns `concurrent.futures.Future`. `LocalHandle` runs them one
after the other on a thread of their own, in this process.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import Any

logger = logging.getLogger(__name__)

FIRST_NOTICE_S = 30.0


class LocalHandle:
    """Runs the methods of `worker` on one thread, in the order in which they were called."""

    def __init__(self, worker: Any, name: str) -> None:
        self.worker = worker
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start `worker.method(*args, **kwargs)` and return its future."""
        return self._thread.submit(getattr(self.worker, method), *args, **kwargs)

    def close(self) -> None:
        """Drop what has not started, and wait for what has."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def wait(future: Future[Any], what: str) -> Any:
    """The future's result. Says what it waits for after 30 s, and then each time the wait has doubled."""
    started, notice = time.monotonic(), FIRST_NOTICE_S
    while True:
        try:
            return future.result(timeout=max(0.0, notice - (time.monotonic() - started)))
        except NotYet:
            if future.done():  # the work itself raised a TimeoutError
                raise
            logger.warning("waiting for %s for %.0f s", what, time.monotonic() - started)
            notice *= 2
