"""Output whose reader has gone away: `slime … | head`, a closed terminal, a `tee` that died. Called by the `slime` command: what
prints and ends is ended by it, a run goes on."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import sys
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

STATUS = 141
"""The exit status of a command whose output nobody reads any more: what shells say of a process that SIGPIPE ended."""


def is_unread(stream: IO[str]) -> bool:
    """Whether a stream is a pipe or connection that nobody reads any more."""
    if (number := _file_number(stream)) is None:
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def discard(stream: IO[Any] | io.FileIO) -> None:
    """Let whatever is still written to a stream go nowhere, so that nothing fails for its sake."""
    if (number := _file_number(stream)) is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def write_on() -> None:
    """Let stdout and stderr of this process go nowhere as soon as nobody reads them, instead of failing: whatever prints (a
    progress bar of a library) would end a run, or hold a lock for ever."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and (number := _file_number(stream)) is not None:
            stream.flush()
            raw = _WritesOn(number, "w", closefd=False)
            setattr(
                sys, name, io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace", None, True)
            )


class _WritesOn(io.FileIO):
    """A file that takes no notice where nobody reads it any more."""

    def write(self, data: Buffer) -> int:
        """Write to it, or nowhere."""
        try:
            return super().write(data)
        except OSError as error:
            closed_terminal = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
            if not isinstance(error, BrokenPipeError) and not closed_terminal:
                raise
            discard(self)
            return memoryview(data).nbytes


def _file_number(stream: IO[Any] | io.FileIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):  # closed, or no file at all
        return None
