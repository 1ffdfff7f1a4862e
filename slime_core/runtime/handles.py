"""Workers behind handles. The loop sees only handles, so it does not know whether a worker is a thread or a process.

A worker is an object; a handle runs its methods and returns `concurrent.futures.Future`. `LocalHandle` runs them one
after the other on a thread of their own, in this process; `slime_core.runtime.actor_handles.ActorHandle` in Ray actors.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from concurrent.futures import wait as first_of
from functools import cache
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from slime_core.contracts.data import Closes
from slime_core.runtime.hardware import CPU, visible_hardware
from slime_core.tensors.freed_memory import share_one_heap

logger = logging.getLogger(__name__)

FIRST_NOTICE_S = 30.0
_took: dict[str, float] = {}
"""How long this process has waited for each kind of work when it was done, in seconds: the longest wait, by what it was for without
its numbers."""


Worker = TypeVar("Worker")
Worker_co = TypeVar("Worker_co", covariant=True)
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Handle(Protocol[Worker_co]):
    """A worker, or a group of them that is called as one: the training ranks."""

    def call(
        self,
        method: Callable[Concatenate[Worker_co, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Future[Result]:
        """Start `worker.method(*args, **kwargs)` and return the future of its result; of a group that of the first."""

    def keep(
        self,
        method: Callable[Concatenate[Worker_co, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Future[Result]:
        """Like `call`, but what comes back is only good as an argument of another call: the result itself stays where it
        was made until that call fetches it."""

    def fetch(self, kept: Any) -> Any:
        """What `keep` has given, in this process; anything else as it is."""

    def call_all(
        self,
        method: Callable[Concatenate[Worker_co, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Future[list[Result]]:
        """Like `call`, with the results of all workers of the group."""

    def take_timings(self) -> dict[str, float]:
        """Timings of plugins in the workers' processes since the last time; see `Plugins.take_timings`."""

    def close(self) -> None:
        """End the workers, and let each give back what it holds (its method `close`)."""


@cache
def _prepare_heap() -> None:
    """Once for a process: asking for a GPU takes a while, and a run makes a handle for every checkpoint."""
    if visible_hardware() == CPU:
        share_one_heap()


class LocalHandle(Generic[Worker]):
    """Runs the methods of `worker` on one thread, in the order in which they were called. Without a GPU the thread shares the heap of this
    process's first one, so that its large tensors can be kept for the next ones (`slime_core.tensors.freed_memory`).

    Args:
        name: the name of the thread.
    """

    def __init__(self, worker: Worker, name: str) -> None:
        self.worker = worker
        _prepare_heap()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    def call(
        self,
        method: Callable[Concatenate[Worker, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Future[Result]:
        """Start the method and return its future."""
        own: Callable[..., Result] = getattr(self.worker, method.__name__)
        return self._thread.submit(own, *args, **kwargs)

    def keep(
        self,
        method: Callable[Concatenate[Worker, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Future[Result]:
        """Do the same as `call`: everything is in this process."""
        return self.call(method, *args, **kwargs)

    def fetch(self, kept: Any) -> Any:
        """The very object."""
        return kept

    def call_all(
        self,
        method: Callable[Concatenate[Worker, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Future[list[Result]]:
        """Start the method and return the future of a list with the one worker's result."""
        own: Callable[..., Result] = getattr(self.worker, method.__name__)
        return self._thread.submit(lambda: [own(*args, **kwargs)])

    def take_timings(self) -> dict[str, float]:
        """Nothing: the timings of this process are in the run's own `Plugins`."""
        return {}

    def close(self) -> None:
        """Drop what has not started, wait for what has, and close the worker."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        if isinstance(self.worker, Closes):
            self.worker.close()


class Notices:
    """Says what is waited for: after 30 s, or twice as long as the same took before, and then each time the wait has doubled.

    Args:
        what: as in "waiting for …".
    """

    def __init__(self, what: str) -> None:
        self._what, self._started = what, time.monotonic()
        self._kind = "".join(letter for letter in what if not letter.isdigit())
        self._next = max(FIRST_NOTICE_S, 2 * _took.get(self._kind, 0.0))

    @property
    def waited(self) -> float:
        """How long it has been waited for, in seconds."""
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        """How many seconds are left until the next notice is due."""
        return max(0.0, self._next - self.waited)

    def say_if_due(self) -> None:
        """Log the next notice if it is due."""
        if self.waited >= self._next:
            logger.info("waiting for %s for %.0f s", self._what, self.waited)
            self._next *= 2

    def done(self) -> None:
        """What was waited for is there: another wait of this kind is told once it takes much longer."""
        _took[self._kind] = max(self.waited, _took.get(self._kind, 0.0))


def wait(future: Future[Result], what: str) -> Result:
    """Wait for the future and return its result, saying what is waited for as `Notices` does."""
    notices = Notices(what)
    while True:
        try:
            result = future.result(timeout=notices.left)
            notices.done()
            return result
        except NotYet:
            if future.done():  # the work itself raised a TimeoutError
                raise
            notices.say_if_due()


def wait_all(futures: Sequence[Future[Any]], what: str) -> None:
    """Wait for all of the futures like `wait`, or until the first of them fails, and raise its error then."""
    notices = Notices(what)
    left = set(futures)
    while left:
        done, left = first_of(left, timeout=notices.left, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        notices.say_if_due()
