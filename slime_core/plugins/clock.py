"""How long a call has worked: its clock stands still while it waits for its turn.

A component that has its work done by something with a queue, or waits for a service that is being restarted, does so within
`waiting()`. The time limit of the failure policy then counts its work alone, however many calls stand before it.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from slime_core.plugins.watchdog import WATCHDOG

LEAVE_AFTER = 1.0
"""Seconds for which a call is waited for that has been told to end."""


class Clock:
    """Counts the seconds of one call. Any thread may pause it.

    Args:
        changed: called whenever the clock has stopped or goes on.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._worked = 0.0
        self._since = time.monotonic()
        self._pauses = 0

    def seconds(self) -> float:
        """How long the call has worked."""
        with self._lock:
            return self._worked + (0.0 if self._pauses else time.monotonic() - self._since)

    @property
    def is_paused(self) -> bool:
        """Whether it stands still."""
        return self._pauses > 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the clock stand still; pauses may overlap."""
        with self._lock:
            if not self._pauses:
                self._worked += time.monotonic() - self._since
            self._pauses += 1
        self._changed()
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                if not self._pauses:
                    self._since = time.monotonic()
            self._changed()


_clock: contextvars.ContextVar[Clock | None] = contextvars.ContextVar("slime_clock", default=None)


@contextmanager
def waiting() -> Iterator[None]:
    """Do not count what happens within as work of the component that is being called. Does nothing outside of such calls."""
    clock = _clock.get()
    if clock is None:
        yield
        return
    with clock.paused():
        yield


class LeftBehindError(TimeoutError):
    """A call took longer than it may and does not end when it is cancelled, so nobody waits for it any more."""


async def within(limit: float | None, start: Callable[[], Awaitable[Any]]) -> Any:
    """Await what `start` returns for `limit` seconds of work, as `asyncio.wait_for` does by the clock on the wall. None is no limit.

    Also where it is cancelled from outside, nobody waits longer than `LEAVE_AFTER` for a call that swallows that. One that blocks the
    event loop for longer than the limit gets a `PluginError` (`slime_core.plugins.watchdog`).

    Raises:
        TimeoutError: it took longer; it is cancelled.
        LeftBehindError: the same, and it goes on all the same.
    """
    loop, deadline = asyncio.get_running_loop(), asyncio.timeout(limit)

    def set_deadline() -> None:
        with suppress(RuntimeError):  # the call has ended
            deadline.reschedule(None if clock.is_paused else loop.time() + (limit or 0.0) - clock.seconds())

    def changed() -> None:
        with suppress(RuntimeError):  # the loop has ended; only a thread that nobody waits for is still there
            loop.call_soon_threadsafe(set_deadline)

    clock = Clock(changed if limit is not None else lambda: None)
    token = _clock.set(clock)  # what is called from here on has this clock
    try:
        task = asyncio.ensure_future(start())
    finally:
        _clock.reset(token)
    end_watch: Callable[[], None] = lambda: None  # noqa: E731
    if isinstance(task, asyncio.Task) and limit is not None:
        end_watch = WATCHDOG.watch(task, clock.seconds, limit)
    try:
        async with deadline:
            await asyncio.wait({task})
    except TimeoutError:
        if not task.done():
            raise (TimeoutError if await _ended(task) else LeftBehindError) from None
    except asyncio.CancelledError:
        await _ended(task)
        raise
    finally:
        end_watch()
    return task.result()


async def _ended(task: asyncio.Future[Any]) -> bool:
    """Cancel a call and return whether it has ended. One that has not is forgotten: the event loop does not wait for it at its end."""
    task.cancel()
    await asyncio.wait({task}, timeout=LEAVE_AFTER)
    if task.done():
        if not task.cancelled():
            task.exception()  # nobody else asks for it
        return True
    if isinstance(task, asyncio.Task):
        asyncio._unregister_task(task)  # documented under "Extending asyncio"
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio.gather does
    return False


def result_within(limit: float, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the result of a plain function that may work for `limit` seconds.

    Raises:
        TimeoutError: it took longer; it goes on, and nobody sees what becomes of it.
    """
    clock = Clock()
    token = _clock.set(clock)
    try:
        future = in_thread(function, args, kwargs)
    finally:
        _clock.reset(token)
    while (left := limit - clock.seconds()) > 0:
        try:
            return future.result(left)
        except TimeoutError:
            if future.done():
                raise
    raise TimeoutError


def in_thread(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
    """Run on a new daemon thread: one that hangs cannot be stopped, but it keeps neither the run nor its end waiting."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()  # nobody can cancel it any more, so its result can always be set
    context = contextvars.copy_context()

    def work() -> None:
        try:
            result = context.run(function, *args, **kwargs)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=work, name="plugin-call", daemon=True).start()
    return future
