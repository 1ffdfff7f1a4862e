"""Fewer collections of garbage while a command starts. Called by the command line, and where a run begins.

What a command imports makes millions of objects that stay. Python looks through them again after every 700 new ones, which
takes a third of a second of the five until a run is checked.
"""

from __future__ import annotations

import gc

_NEW_OBJECTS = 1_000_000
_before: tuple[int, int, int] | None = None


def collect_seldom() -> None:
    """Collect garbage after a million new objects, until `collect_again`."""
    global _before
    if _before is None:
        _before = gc.get_threshold()
        gc.set_threshold(_NEW_OBJECTS, *_before[1:])


def collect_again() -> None:
    """Collect garbage as often as before `collect_seldom`, and look no more through what there is by now. Without it, do nothing."""
    global _before
    if _before is not None:
        gc.set_threshold(*_before)
        gc.freeze()
        _before = None
