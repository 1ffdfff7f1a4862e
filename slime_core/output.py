"""What is wrong when a run cannot write: the disk is full, a limit is in the way, the folder is read-only. Called wherever a run
writes: metrics, configuration, answers of evaluations, dumps, checkpoints, exports. And when nobody foresaw that a path cannot be looked at:
it is another user's, or its disk does not work."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slime_core.errors import OutputError, SlimeError

_SPACE = "Free some space there."
_LIMIT = "The limit on the size of a file (ulimit -f) is in the way: raise it."
_ADVICE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: "The quota is used up: free some space there.",
    errno.EFBIG: _LIMIT,
    errno.EROFS: "It is read-only: let it be written into, or choose another folder.",
    errno.EACCES: "Change who may write there, or choose another folder.",
    errno.EPERM: "Change who may write there, or choose another folder.",
    errno.EIO: "The disk there does not work: look at it, or choose another folder.",
    errno.ESTALE: "The shared storage there is gone: mount it again, or choose another folder.",
    errno.EISDIR: "There is a folder of this name: choose another one.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "A link there leads back to itself: choose another folder.",
    errno.ENOTDIR: "A part of the path is a file: choose another folder.",
    errno.EEXIST: "There is a file of this name: choose another one.",
    errno.ENOENT: "The folder is gone while the run goes on: leave it in its place.",
}
_OPEN = "Let this user enter its folders and use it, or give another path."
_ADVICE_ON_PATHS = {
    errno.EACCES: _OPEN,
    errno.EPERM: _OPEN,
    errno.ENAMETOOLONG: "Give a shorter path.",
    errno.EIO: "The disk there does not work: look at it, or give another path.",
    errno.ESTALE: "The shared storage there is gone: mount it again.",
}
_WRITERS = ("PytorchStreamWriter", "inline_container", "SafetensorError")


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Around what writes a file: a fault of the disk becomes an error that says what to do. Other errors pass.

    Args:
        what: it is, as in "The metrics".

    Raises:
        OutputError: names the file and the fault.
    """
    try:
        yield
    except Exception as error:
        advice = fault_of_disk(error, path)
        if advice is None:
            raise
        number = _number(error)
        reason = str(error) if number is None else os.strerror(number)
        raise OutputError(f"{what} could not be written to {path}: {reason}. {advice}") from error


def path_in_the_way(error: BaseException) -> SlimeError | None:
    """What people are told where an error came of a path alone that cannot be looked at, whoever looked; None for any other error."""
    if not isinstance(error, OSError) or error.filename is None or error.errno not in _ADVICE_ON_PATHS:
        return None
    return SlimeError(f"{error.filename} cannot be used: {error.strerror}. {_ADVICE_ON_PATHS[error.errno]}")


def fault_of_disk(error: BaseException, path: Path) -> str | None:
    """What to do about an error that came while something was written below `path`, if it is one of the disk; None for any other,
    such as a rank that is gone. Libraries that lose the error's number are believed to have met what can be seen afterwards: a disk
    that is full, or a limit on files."""
    number = _number(error)
    if number is not None:
        return _ADVICE.get(number)
    if not any(name in f"{type(error).__name__}: {error}" for name in _WRITERS):
        return None
    if _free_bytes(path) == 0:
        return _SPACE
    limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    return _LIMIT if limited else "Look at the disk there."


def _number(error: BaseException) -> int | None:
    """The number of an error of the operating system, also of one that a library tells in its own words; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if told := re.search(r"os error (\d+)|\[Errno (\d+)\]", str(error)):  # of Rust, and of Python within another
        return int(told[1] or told[2])
    return None if error.__cause__ is None else _number(error.__cause__)


def _free_bytes(path: Path) -> int | None:
    folder = next((parent for parent in (path, *path.parents) if parent.exists()), None)
    try:
        stat = os.statvfs(folder or "/")
    except OSError:
        return None
    return stat.f_bavail * stat.f_frsize
