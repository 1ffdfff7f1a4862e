"""JSON Lines with random access: an index of byte offsets, and one `pread` per row.

The index is built in one pass that also hashes the content. It costs 8 bytes a row; file content never stays in
memory. Used by `open_rows`, and by whatever keeps rows in such a file for a while.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from array import array
from bisect import bisect_right
from pathlib import Path
from typing import Any

from slime_core.errors import DataError
from slime_core.plain import read_json, require_row_size

_PIECE = 4 << 20
BOM = b"\xef\xbb\xbf"
_PACKED = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
"""How packed files begin."""
SPACE = b" \t\r\n"


class JsonLinesFile:
    """A file with one JSON object per line.

    Blank lines are no rows, but the row number in messages is the line's, so that it can be found in an editor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)  # rows are handed on and have no end of their own
        self._starts = array("Q")  # first byte of every row; then the first byte after the last row
        self._blank_lines = array("Q")  # for every blank line, the number of rows before it
        self._digest = self._index_lines()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, index: int) -> Any:
        """Return row `index`, parsed. Raises `DataError` with the column, without file and row."""
        start, end = self._starts[index], self._starts[index + 1]
        require_row_size(end - start)
        raw = os.pread(self._file.fileno(), end - start, start)
        return parse_json(raw.rstrip(SPACE))

    def row_number(self, index: int) -> int:
        """Return the number of the row's line, counted from 1."""
        return index + 1 + bisect_right(self._blank_lines, index)

    def digest(self) -> str:
        """Return the digest of the whole content."""
        return self._digest

    def _index_lines(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        starts, position = self._starts, 0
        start, blank = 0, True  # of the line: where it begins, and whether it is blank so far
        while piece := self._file.read(_PIECE):
            digest.update(piece)
            cursor = 0
            if position == 0 and (
                packed := next((how for how, magic in _PACKED.items() if piece.startswith(magic)), "")
            ):
                raise DataError(
                    f"{self.path} is compressed by {packed}; expected lines of JSON. Unpack it, or name it {self.path.name}"
                    f".{'gz' if packed == 'gzip' else 'zst'} and choose --data-source-path streaming."
                )
            if position == 0 and piece.startswith(BOM):
                cursor = start = len(BOM)
            while (newline := piece.find(b"\n", cursor)) >= 0:
                if blank and not piece[cursor:newline].strip(SPACE):
                    self._blank_lines.append(len(starts))
                else:
                    starts.append(start)
                cursor, start, blank = newline + 1, position + newline + 1, True
            blank = blank and not piece[cursor:].strip(SPACE)
            position += len(piece)
        if not blank:
            starts.append(start)
        starts.append(position)
        return digest.hexdigest()


def parse_json(raw: bytes) -> Any:
    """Return the JSON value of one row. Raises `DataError` with the column, without file and row."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"not valid UTF-8 at byte {error.start} of the row: {error.reason}") from None
    return read_json(text)
