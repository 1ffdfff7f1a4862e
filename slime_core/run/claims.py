"""Folders that a run writes into belong to it alone: it claims them when it starts, before anything loads, and a second run that names
one of them is refused. Called by `slime_core.run.launch`, and by engines for folders of their own.

A claim is a lock on the file `.slime-run` in the folder, which the operating system takes back when the process ends, however it
ends; the file says who holds it. Locks of POSIX hold between machines too, where a shared file system passes them on (NFS does).
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import struct
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path

from slime_core.errors import CheckpointError

NAME = ".slime-run"
_held: set[str] = set()
"""Folders that runs of this process hold: a lock keeps only other processes out."""

_FLOCK = "hhqqi4x"
"""`struct flock` of Linux: kind, whence, start, length, process."""

logger = logging.getLogger(__name__)


class Claims:
    """The folders that a run has claimed. Leaving the `with` block, or `give_back`, gives them back."""

    def __init__(self) -> None:
        self._files: list[tuple[str, FileIO]] = []

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *error: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Let other runs have the folders."""
        for folder, file in reversed(self._files):
            with suppress(OSError):
                file.truncate(0)
            file.close()
            _held.discard(folder)
        self._files.clear()

    def claim(self, option: str, folder: Path) -> None:
        """Make a folder, if it is not there, and keep other runs out of it. One that this run has claimed stays so.

        Args:
            option: that names it, for errors.

        Raises:
            CheckpointError: another run is writing there, or nobody can.
        """
        key = os.path.realpath(folder)
        if any(key == held for held, _ in self._files):
            return
        if key in _held:
            raise CheckpointError(_taken(option, folder, "another run of this process"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = open(folder / NAME, "a+b", buffering=0)  # noqa: SIM115  # is held as long as the run lasts
        except OSError as error:
            raise CheckpointError(_closed(option, folder, error)) from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = _in_words(file.read())
                file.close()
                raise CheckpointError(_taken(option, folder, holder)) from None
            logger.warning(
                "%s %s: its file system has no locks (%s), so a second run there is not noticed", option, folder, error
            )
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")})
        try:
            file.truncate(0)
            file.write(owner.encode())
        except OSError as error:
            file.close()
            raise CheckpointError(_closed(option, folder, error)) from error
        _held.add(key)
        self._files.append((key, file))


def is_claimed(folder: Path) -> bool:
    """Whether a run holds this folder now. Asks the lock without touching it."""
    if os.path.realpath(folder) in _held:
        return True
    with suppress(OSError):
        with (folder / NAME).open("rb") as file:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, *_ = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
            return bool(kind != fcntl.F_UNLCK)
    return False


def claim_of(folder: Path) -> str:
    """Who holds this folder, or held it and was killed, in words; "" for nobody."""
    if os.path.realpath(folder) in _held:  # whoever closes a file gives up his own locks on it
        return "this process"
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    return _in_words(text) if text.strip() else ""


def _taken(option: str, folder: Path, owner: str) -> str:
    return (
        f"{option} {folder} belongs to a run that is going on: {owner}. Two runs in one folder overwrite each other; wait for that one to "
        "end, or choose another folder."
    )


def _closed(option: str, folder: Path, error: OSError) -> str:
    return (
        f"{option} {folder} cannot be written into: {error.strerror or error}. Choose another folder, or see to it that this one has space "
        "and that you may write there."
    )


def _in_words(text: str | bytes) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
