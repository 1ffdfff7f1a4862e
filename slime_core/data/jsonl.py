"""JSON Lines and JSON arrays with random access: an index of byte offsets, and one `pread` per row.

The index is built in one pass that also hashes the content. It costs 8 bytes a row; file content never stays in
memory. Used by `open_rows`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import weakref
from array import array
from bisect import bisect_right
from pathlib import Path
from typing import Any

from slime_core.errors import DataError

_PIECE = 4 << 20
_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_GAP = re.compile(r"[ \t\r\n]*")


class JsonFile:
    """A `.jsonl` file, or a `.json` file that holds one array of objects or one object per line.

    Blank lines are no rows, but the row number in messages is the line's, so that it can be found in an editor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)  # rows are handed on and have no end of their own
        self._starts = array("Q")  # first byte of every row; then the first byte after the last row
        self._blank_lines = array("Q")  # for every blank line, the number of rows before it
        self._is_array = path.suffix.lower() == ".json" and self._first_byte() == b"["
        if self._is_array:
            self._digest = self._index_array()
        else:
            self._digest = self._index_lines()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, index: int) -> Any:
        """Row `index`, parsed. Raises `DataError` with the column, without file and row."""
        start, end = self._starts[index], self._starts[index + 1]
        raw = os.pread(self._file.fileno(), end - start, start)
        return parse_json(raw.rstrip(_SPACE + b"," if self._is_array else _SPACE))

    def row_number(self, index: int) -> int:
        """1-based: the line, or in an array the position."""
        return index + 1 + bisect_right(self._blank_lines, index)

    def digest(self) -> str:
        """Digest of the whole content."""
        return self._digest

    def _first_byte(self) -> bytes:
        start = os.pread(self._file.fileno(), 1 << 16, 0).removeprefix(_BOM)
        return start.lstrip(_SPACE)[:1]

    def _index_lines(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        starts, position, carried = self._starts, 0, b""
        while piece := self._file.read(_PIECE):
            digest.update(piece)
            piece, cursor = carried + piece, 0
            if position == 0 and piece.startswith(_BOM):
                cursor = len(_BOM)
            while (newline := piece.find(b"\n", cursor)) >= 0:
                self._add_line(position + cursor, piece[cursor:newline])
                cursor = newline + 1
            carried, position = piece[cursor:], position + cursor
        if carried.strip(_SPACE):
            starts.append(position)
        starts.append(position + len(carried))
        return digest.hexdigest()

    def _add_line(self, start: int, line: bytes) -> None:
        if line.strip(_SPACE):
            self._starts.append(start)
        else:
            self._blank_lines.append(len(self._starts))

    def _index_array(self) -> str:
        """Find the elements with the standard library's decoder, a piece of the file at a time.

        The bytes are decoded as Latin-1, which makes one character of each byte: offsets in the text are offsets in
        the file, and JSON's own syntax is ASCII.
        """
        digest = hashlib.blake2b(digest_size=16)
        decode = json.JSONDecoder().raw_decode
        text, base, cursor, more = "", 0, 0, True

        def read_on() -> bool:
            nonlocal text, base, cursor
            piece = self._file.read(max(_PIECE, len(text) - cursor))  # doubles while one row does not fit
            digest.update(piece)
            text, base, cursor = text[cursor:] + piece.decode("latin-1"), base + cursor, 0
            return bool(piece)

        def skip_gap() -> str:
            nonlocal cursor, more
            while True:
                cursor = _GAP.match(text, cursor).end()  # type: ignore[union-attr]  # matches nothing at least
                if cursor < len(text) or not more:
                    return text[cursor : cursor + 1]
                more = read_on()

        read_on()
        cursor = text.index("[") + 1
        expected = "{]"
        while (found := skip_gap()) != "]":
            row = len(self._starts) + 1
            if found not in expected or not found:
                raise DataError(
                    self._broken_array(row, base + cursor, f"found {found!r}" if found else "the file ends")
                )
            try:
                _, end = decode(text, cursor)
            except json.JSONDecodeError as error:
                # The decoder tells an unfinished piece from a wrong one only by where it stopped.
                unfinished = error.msg.startswith("Unterminated") or error.pos >= len(text) - 16
                if unfinished and more:
                    more = read_on()
                    continue
                raise DataError(self._broken_array(row, base + error.pos, error.msg)) from None
            self._starts.append(base + cursor)
            cursor = end
            if skip_gap() == ",":
                cursor += 1
                expected = "{"
            else:
                expected = "]"
        self._starts.append(base + cursor)
        cursor += 1
        if skip_gap():
            raise DataError(f"{self.path}: something follows the array's closing ] at byte {base + cursor}; remove it.")
        return digest.hexdigest()

    def _broken_array(self, row: int, byte: int, what: str) -> str:
        return (
            f"{self.path}:{row}: not valid JSON at byte {byte}: {what}. "
            "Expected one array of objects, [{…}, {…}]; repair the file."
        )


def parse_json(raw: bytes) -> Any:
    """The JSON value of one row. Raises `DataError` with the column, without file and row."""
    try:
        text = raw.decode()
        row = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text: tokenizers reject it
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON at column {error.pos + 1}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"not valid UTF-8 at byte {error.start} of the row: {error.reason}") from None
    except UnicodeEncodeError:
        raise DataError("holds half of a surrogate pair (\\ud800 … \\udfff), which is no character") from None
    except RecursionError:
        raise DataError("nested too deeply to be read") from None
    return row
