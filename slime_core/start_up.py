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

_NEW_OBJECTS = 1_000_000
_LEAST = (_NEW_OBJECTS, 0, 1_000)
"""Thresholds of the generations of objects, as `gc.set_threshold` takes them, where they are raised."""
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
    return _less_often(0)


def collecting_old_seldom() -> AbstractContextManager[None]:
    """A context in which objects that have stayed for a while are looked through a hundredth as often; new ones are as before. What thousands of
    samples need while they are made stays until they are, and was looked through again whenever there was a quarter more of it."""
    return _less_often(2)


@contextmanager
def _less_often(generation: int) -> Iterator[None]:
    global _outside
    with _lock:
        if not any(_inside):
            _outside = gc.get_threshold()
        _count(generation, 1)
    try:
        yield
    finally:
        with _lock:
            _count(generation, -1)


def _count(generation: int, change: int) -> None:
    _inside[generation] += change
    raised = (max(least, own) if inside else own for least, own, inside in zip(_LEAST, _outside, _inside, strict=True))
    gc.set_threshold(*raised)


_lock = threading.Lock()
_inside, _outside = [0, 0, 0], gc.get_threshold()


def collect_again() -> None:
    """Collect garbage as often as before `collect_seldom`, and look no more through what there is by now. Without it, do nothing."""
    global _before
    if _before is not None:
        gc.set_threshold(*_before)
        gc.freeze()
        _before = None
