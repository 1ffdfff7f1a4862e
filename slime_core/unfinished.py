"""`unfinished`: where what takes minutes to write is written, hidden at its place, until it is whole; `replace_model` and `replace_folder` put it
there. Called by exports and conversions."""

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
    """Return a path that is this process's alone: `.NAME.HOST.PID`, beside `target`, or in it where it is a folder, which may be a link or a
    mount, or stand in one that is not to be written into. The caller removes it, or puts it in the place of `target`.

    What processes of this machine that were killed have left of the same target is removed. What may be another machine's is named in the log.

    Args:
        ending: of a file, such as ".jsonl".
    """
    host = re.sub(r"[^\w-]", "-", socket.gethostname())
    start, own = f".{target.name}.", os.getpid()
    place = target if target.is_dir() else target.parent
    with suppress(OSError):  # there is no folder yet, or none that can be listed
        for path in sorted(place.iterdir()):
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
                _remove(path)
    return place / f"{start}{host}.{own}{ending}"


_OF_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "adapter", "quantised")
"""What a Hugging Face checkpoint of an earlier export has that the new one may not have. Who finds it reads the old weights: transformers takes
a single file before an index, and servers go by the index."""


def replace_model(written: Path, target: Path) -> None:
    """Put a checkpoint that is whole in the place of `target`. If there is one already, its weights go, and other files that the new one lacks
    stay."""
    let_others_read(written)
    if target.exists():
        for old in [path for pattern in _OF_WEIGHTS for path in target.glob(pattern)]:
            _remove(old)
    _move(written, target)


def replace_folder(written: Path, target: Path) -> None:
    """Put a folder that is whole in the place of `target`, of which nothing stays but the folder itself: it may be a mount, or a link to one."""
    if target.exists():
        for old in list(target.iterdir()):
            if old.name != written.name:
                _remove(old)
    _move(written, target)


def _move(written: Path, target: Path) -> None:
    if not target.exists():
        written.rename(target)
        return
    for new in list(written.iterdir()):
        if (target / new.name).is_dir():
            _remove(target / new.name)
        new.replace(target / new.name)
    written.rmdir()


def let_others_read(folder: Path) -> None:
    """Give the files of weights in a checkpoint the mode that its config.json has. safetensors lets their owner alone read them, whatever
    the umask says, and a server may be another user."""
    for file in folder.rglob("*.safetensors"):
        for usual in (folder / "config.json", file.with_name("adapter_config.json")):
            if usual.is_file():
                shutil.copymode(usual, file)
                break


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True
