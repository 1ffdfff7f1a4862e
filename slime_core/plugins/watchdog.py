"""Ends calls of async components that block their event loop: nothing else can go on there, so no timeout of the loop's own is ever
seen. Used by `slime_core.plugins.clock`.

A thread looks once a second. Where the same call has been running without giving the loop a turn, for longer than it may work, an
error is raised in its frame: in the main thread by a signal, which also ends a `time.sleep`; in another thread as soon as Python
runs there again.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from slime_core.errors import PluginError

logger = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds between two looks."""

_SIGNAL = signal.SIGRTMIN + 9 if hasattr(signal, "SIGRTMIN") else None
_TELL = (
    "It blocked the event loop for {0:.0f} s, in which nothing else of the rollout could go on. Await what takes long, or make it a "
    "plain function, which runs on a thread of its own."
)


class _Blocked(PluginError):
    """Raised where a component blocks. It is made without arguments: the interpreter makes it itself."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text or _TELL.format(_Blocked.seconds))

    seconds = 0.0


@dataclass(eq=False)
class _Watched:
    """One call.

    Attributes:
        worked: how long it has worked.
        limit: how long it may.
        thread: that its event loop runs in.
        alive: whether the loop has made a turn since the last look.
        told: whether a warning was given.
    """

    task: asyncio.Task[object]
    loop: asyncio.AbstractEventLoop
    worked: Callable[[], float]
    limit: float
    thread: int = field(default_factory=threading.get_ident)
    alive: bool = True
    told: bool = False


class Watchdog:
    """Looks after the calls of this process. There is one, `WATCHDOG`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: set[_Watched] = set()
        self._looking = False
        self._listens = False  # to the signal, in the main thread

    def watch(self, task: asyncio.Task[object], worked: Callable[[], float], limit: float) -> Callable[[], None]:
        """Look after a task of the running event loop, and return what ends that."""
        call = _Watched(task, asyncio.get_running_loop(), worked, limit)
        if not self._listens and _SIGNAL is not None and call.thread == threading.main_thread().ident:
            signal.signal(_SIGNAL, _raise_blocked)
            self._listens = True
        with self._lock:
            self._calls.add(call)
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="plugin-watchdog", daemon=True).start()

        def end() -> None:
            with self._lock:
                self._calls.discard(call)

        return end

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_EVERY)
            with self._lock:
                calls = list(self._calls)
                if not calls:
                    self._looking = False
                    return
            for call in calls:
                self._look_at(call)

    def _look_at(self, call: _Watched) -> None:
        """Raise in a call that had no turn of the loop since it was looked at last, though it is running and late."""
        try:
            is_running = asyncio.current_task(call.loop) is call.task
        except RuntimeError:
            is_running = False
        if not (is_running and not call.alive and call.worked() > call.limit):
            call.alive = False
            with suppress(RuntimeError):  # the loop has ended
                call.loop.call_soon_threadsafe(setattr, call, "alive", True)
            return
        _Blocked.seconds = call.worked()
        if not call.told:
            call.told = True
            logger.warning("A call blocks the event loop since %.0f s and is ended.", call.worked())
        if call.thread == threading.main_thread().ident and _SIGNAL is not None:
            signal.pthread_kill(call.thread, _SIGNAL)
        else:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(call.thread), ctypes.py_object(_Blocked))


def _raise_blocked(*_: object) -> None:
    raise _Blocked


WATCHDOG = Watchdog()
