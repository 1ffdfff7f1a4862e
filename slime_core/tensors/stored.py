"""What `torch.save` wrote, read as data alone: nothing in it is executed, and it takes no more memory than it has bytes.

Train backends read every such file, or part of a file, through this.
"""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import torch


def load_stored(source: Path | bytes) -> Any:
    """Tensors and plain data from a file of `torch.save`, or from its bytes. Tensors come into host memory.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or says that it holds more than it has bytes.
        pickle.UnpicklingError: it holds something else than tensors and plain data.
        RuntimeError: it is damaged.
    """
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
        require_bounded(stream)
        return torch.load(stream, map_location="cpu", weights_only=True)


def require_bounded(stream: IO[bytes]) -> None:
    """Refuse a file of `torch.save` from which torch would make more than it has bytes: one with compressed parts, which `torch.save`
    does not write, or in the format before 1.6, whose tensors have the sizes that it says. Leaves the stream at its start.

    Raises:
        ValueError: it is such a file, or no file of `torch.save` at all.
    """
    size = stream.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(stream) as parts:
            wanted = sum(part.file_size for part in parts.infolist())
            packed = [part.filename for part in parts.infolist() if part.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError(f"it is no file of torch.save ({error})") from error
    if packed or wanted > size:
        raise ValueError(f"it has {size} bytes and says that they are {wanted}: {', '.join(packed[:3]) or 'all parts'}")
    stream.seek(0)


class Part(io.RawIOBase):
    """A part of an open file, as a file.

    Args:
        start, length: in bytes; what is beyond the file's end is not there.
    """

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        super().__init__()
        self._file, self._start = file, max(0, start)
        self._length = max(0, min(length, file.seek(0, io.SEEK_END) - self._start))
        self._at = 0

    def seekable(self) -> bool:
        """Always."""
        return True

    def readable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next byte is read, from the start of the part."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a byte of the part."""
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if at < 0:
            raise OSError(f"there is no byte {at}")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with the next bytes, and return how many there were."""
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
