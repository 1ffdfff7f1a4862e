"""The cache folder for files that cannot be read row by row, such as Parquet: each is copied once into a form that can.

They are in the folder `$SLIME_CACHE/rows`, by default `~/.cache/slime/rows`. A copy is named after the digest of what it was
made from: it can never be stale, and may be deleted at any time.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from slime_core.errors import DataError


def cache_folder() -> Path:
    """Return the folder of everything that slime keeps between commands and can make anew."""
    return Path(os.environ.get("SLIME_CACHE", "~/.cache/slime")).expanduser()


def cached_copy(original: Path, digest: str, suffix: str, write: Callable[[Path], None]) -> Path:
    """Return the copy of a file, and write it first if there is none yet. It appears whole or not at all.

    Args:
        digest: the digest of the original's content.
        suffix: the extension of the copy.
        write: writes the copy to the path that it is given.

    Raises:
        DataError: the folder cannot be written; or what `write` raises.
    """
    folder = cache_folder() / "rows"
    copy = folder / f"{digest}{suffix}"
    if copy.is_file():
        return copy
    unfinished = folder / f"{digest}.{secrets.token_hex(8)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.touch(exist_ok=False)  # so it is no link that somebody put there
        write(unfinished)
        unfinished.replace(copy)
    except OSError as error:
        raise DataError(
            f"{original} could not be copied into the cache folder {folder}: {error}. "
            "Set SLIME_CACHE to a folder on a disk with enough room."
        ) from None
    finally:
        with suppress(OSError):
            unfinished.unlink()
    return copy
