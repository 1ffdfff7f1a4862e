"""What a component may not do to the process of the run, found when its call is over: change the current folder, end the program,
come back from a fork twice. Called by `slime_core.plugins.selection`, around every call."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_home: str | None = None
_left_home: set[str] = set()


@contextmanager
def at_home() -> Iterator[None]:
    """Within this context, every component that changes the current folder has it changed back when it returns, and one that calls
    `os._exit` in the process of the run raises `SystemExit`, which is an error of the component, in place of ending the run
    without a word. Other processes, such as the workers of a pool, end as they always did."""
    global _home
    before, _home = _home, os.getcwd()
    exits, process = os._exit, os.getpid()

    def raise_exit(status: int) -> None:
        if os.getpid() != process:
            exits(status)
        raise SystemExit(status)

    os._exit = raise_exit  # type: ignore[assignment]  # which never returns either
    try:
        yield
    finally:
        os._exit = exits
        _home = before
        _left_home.clear()


def settle(label: str, process: int) -> None:
    """Put in order what a component left behind in this process.

    Args:
        label: of the component, for messages.
        process: in which it was called. A child that it forked and that comes back from the call ends here: it would go on with
            the run a second time.
    """
    if os.getpid() != process:
        sys.stderr.write(
            f"The {label} forked the process of the run, and the child {os.getpid()} came back from the call; it ends here. Leave "
            "a forked child with os._exit, or use multiprocessing.\n"
        )
        sys.stderr.flush()
        os._exit(1)
    if _home is not None and os.getcwd() != _home:
        os.chdir(_home)
        if label not in _left_home:
            _left_home.add(label)
            logger.warning("The %s changed the current folder; it is %s again", label, _home)


def children() -> dict[int, str]:
    """Return the processes that this one has started and that have not ended, with their command lines; {} where /proc is not
    there. All processes of the machine are asked for their parent: the kernel's lists of children, one for each thread, lose those
    of a thread that ends while they are read."""
    own, found = os.getpid(), {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == own and state != "Z":  # ended, and nobody has asked how
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(process.name)] = words.decode(errors="replace").strip()
        except (OSError, ValueError):  # it has ended
            continue
    return found
