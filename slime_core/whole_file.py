"""`write_whole`: a small file that appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one step: whoever reads it meanwhile finds what was there before.

    It is made beside its place, anew, so that a link that somebody put there is not followed.

    Args:
        content: bytes, or text that is written as UTF-8.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # of a process that was killed
    with temporary.open("xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)
