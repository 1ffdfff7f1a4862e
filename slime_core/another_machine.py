"""Whether a run is looked at on a machine that it is not for, such as a laptop on which a cluster's run is planned: then what is not
here is told and is no mistake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_checked = False


@contextmanager
def for_another_machine(checked: bool = True) -> Iterator[None]:
    """A context in which runs are only looked at, for another machine. `slime check` opens it while it reads the options."""
    global _checked
    before, _checked = _checked, checked
    try:
        yield
    finally:
        _checked = before


def is_for_another_machine(args: Any = None) -> bool:
    """Whether the run is for machines of which this one need not be one: a cluster that it joins, or whatever `slime check --elsewhere`
    is told.

    Args:
        args: the options of the run, of which `ray_address` is read; without them only what is looked at counts.
    """
    return _checked or getattr(args, "ray_address", None) not in (None, "", "local")
