"""`unfinished`: where what takes minutes to write is written, hidden beside its place, until it is whole. Called by exports and conversions."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)


def unfinished(target: Path, ending: str = "") -> Path:
    """Return a path beside `target` that is this process's alone: `.NAME.HOST.PID`. The caller removes it, or renames it to `target`.

    What processes of this machine that were killed have left of the same target is removed. What may be another machine's is named in the log.

    Args:
        ending: of a file, such as ".jsonl".
    """
    host = re.sub(r"[^\w-]", "-", socket.gethostname())
    start, own = f".{target.name}.", os.getpid()
    with suppress(OSError):  # there is no folder yet, or none that can be listed
        for path in sorted(target.parent.iterdir()):
            if not path.name.startswith(start):
                continue
            left = re.fullmatch(r"(?:([\w-]+)\.)?(\d+)(?:\.[a-z]+)?", path.name.removeprefix(start))
            if left is None:
                continue
            if left[1] != host:
                logger.warning(
                    "%s may be what a process %s has left unfinished; remove it if none writes it.", path, left[2]
                )
            elif int(left[2]) == own or not _is_alive(int(left[2])):
                logger.warning("%s, which process %s left unfinished, is removed.", path, left[2])
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return target.with_name(f"{start}{host}.{own}{ending}")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True
