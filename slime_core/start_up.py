"""Fewer collections of garbage while a command starts and when it ends, and while many objects are made that stay. Called by the command line,
where a run begins, and where samples are made or read.

What a command imports makes millions of objects that stay. Python looks through them again after every 700 new ones, which
takes a third of a second of the five until a run is checked.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

_NEW_OBJECTS, _COLLECTIONS = 1_000_000, 1_000
_before: tuple[int, int, int] | None = None


def collect_seldom() -> None:
    """Collect garbage after a million new objects, until `collect_again`."""
    global _before
    if _before is None:
        _before = gc.get_threshold()
        gc.set_threshold(_NEW_OBJECTS, *_before[1:])


def collect_no_more() -> None:
    """Look for garbage no more in this process, which ends: Python would go through all that was imported once more to find what it
    must take apart, a third of a second where torch is among it. What nothing refers to is still given back."""
    gc.freeze()
    gc.disable()


def collecting_seldom() -> AbstractContextManager[None]:
    """A context in which garbage is collected after a million new objects: samples that are read stay, and looking through all of them again and
    again takes a third of the time of reading a large file. Threads may enter it at the same time."""
    return _less_often(0, _NEW_OBJECTS)


def collecting_old_seldom() -> AbstractContextManager[None]:
    """A context in which objects that have stayed for a while are looked through a hundredth as often; new ones are as before. What thousands of
    samples need while they are made stays until they are, and was looked through again whenever there was a quarter more of it."""
    return _less_often(2, _COLLECTIONS)


@contextmanager
def _less_often(generation: int, least: int) -> Iterator[None]:
    global _outside
    with _lock:
        if not any(_inside):
            _outside = gc.get_threshold()
        _inside[generation] += 1
        _set_thresholds({generation: least})
    try:
        yield
    finally:
        with _lock:
            _inside[generation] -= 1
            if not _inside[generation]:
                _set_thresholds({generation: 0})


def _set_thresholds(least: dict[int, int]) -> None:
    now = gc.get_threshold()
    gc.set_threshold(*(max(least[n], _outside[n]) if n in least else now[n] for n in range(len(now))))


_lock = threading.Lock()
_inside, _outside = [0, 0, 0], gc.get_threshold()


def collect_again() -> None:
    """Collect garbage as often as before `collect_seldom`, and look no more through what there is by now. Without it, do nothing."""
    global _before
    if _before is not None:
        gc.set_threshold(*_before)
        gc.freeze()
        _before = None
