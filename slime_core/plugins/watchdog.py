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
        told: whether a warning was given.
    """

    task: asyncio.Task[object]
    worked: Callable[[], float]
    limit: float
    told: bool = False


@dataclass(eq=False)
class _Loop:
    """An event loop, and the calls in it that are looked after.

    Attributes:
        thread: that it runs in.
        alive: whether it has made a turn since the last look.
        calls: of each task.
    """

    thread: int = field(default_factory=threading.get_ident)
    alive: bool = True
    calls: dict[asyncio.Task[object], list[_Watched]] = field(default_factory=dict)


class Watchdog:
    """Looks after the calls of this process. There is one, `WATCHDOG`. A look takes as long however many calls there are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}
        self._looking = False
        self._listens = False  # to the signal, in the main thread

    def watch(self, task: asyncio.Task[object], worked: Callable[[], float], limit: float) -> Callable[[], None]:
        """Look after a task of the running event loop, and return what ends that."""
        call, loop = _Watched(task, worked, limit), asyncio.get_running_loop()
        if not self._listens and _SIGNAL is not None and threading.current_thread() is threading.main_thread():
            signal.signal(_SIGNAL, _raise_blocked)
            self._listens = True
        with self._lock:
            calls = self._loops.setdefault(loop, _Loop()).calls
            calls.setdefault(task, []).append(call)
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="plugin-watchdog", daemon=True).start()

        def end() -> None:
            with self._lock:
                calls[task].remove(call)
                if not calls[task]:
                    del calls[task]
                if not calls:
                    self._loops.pop(loop, None)

        return end

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_EVERY)
            with self._lock:
                loops = list(self._loops.items())
                if not loops:
                    self._looking = False
                    return
            for loop, found in loops:
                self._look_at(loop, found)

    def _look_at(self, loop: asyncio.AbstractEventLoop, found: _Loop) -> None:
        """Raise in a call that is running, and late, if its loop had no turn since it was looked at last."""
        if found.alive:
            found.alive = False
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(setattr, found, "alive", True)
            return
        running = None
        with suppress(RuntimeError):
            running = asyncio.current_task(loop)
        if running is None:
            return
        with self._lock:
            calls = list(found.calls.get(running, ()))
        call = next((call for call in calls if call.worked() > call.limit), None)
        if call is None:
            return
        _Blocked.seconds = call.worked()
        if not call.told:
            call.told = True
            logger.warning("A call blocks the event loop since %.0f s and is ended.", call.worked())
        if found.thread == threading.main_thread().ident and _SIGNAL is not None:
            signal.pthread_kill(found.thread, _SIGNAL)
        else:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(found.thread), ctypes.py_object(_Blocked))


def _raise_blocked(*_: object) -> None:
    raise _Blocked


WATCHDOG = Watchdog()
