"""Fewer collections of garbage while a command starts and when it ends, and while many objects are made that stay. Called by the command line,
where a run begins, and where files of samples are read.

What a command imports makes millions of objects that stay. Python looks through them again after every 700 new ones, which
takes a third of a second of the five until a run is checked.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_NEW_OBJECTS = 1_000_000
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


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """A context in which garbage is collected after a million new objects: samples that are read stay, and looking through all of them again and
    again takes a third of the time of reading a large file. Threads may enter it at the same time."""
    global _inside, _outside
    with _lock:
        if not _inside:
            _outside = gc.get_threshold()
            gc.set_threshold(max(_NEW_OBJECTS, _outside[0]), *_outside[1:])
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                gc.set_threshold(*_outside)


_lock = threading.Lock()
_inside, _outside = 0, gc.get_threshold()


def collect_again() -> None:
    """Collect garbage as often as before `collect_seldom`, and look no more through what there is by now. Without it, do nothing."""
    global _before
    if _before is not None:
        gc.set_threshold(*_before)
        gc.freeze()
        _before = None
