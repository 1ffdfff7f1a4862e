"""Output whose reader has gone away: `slime … | head`, a closed terminal, a `tee` that died. Called by the command and by the
console of runs."""

from __future__ import annotations

import os
import select
from typing import IO

STATUS = 141
"""The exit status of a command whose output nobody reads any more: what shells say of a process that SIGPIPE ended."""


def is_unread(stream: IO[str]) -> bool:
    """Whether a stream is a pipe or connection that nobody reads any more."""
    if (number := _file_number(stream)) is None:
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def discard(stream: IO[str]) -> None:
    """Let whatever is still written to a stream go nowhere, so that nothing fails for its sake."""
    if (number := _file_number(stream)) is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def _file_number(stream: IO[str]) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):  # closed, or no file at all
        return None
