"""JSON arrays of objects, `[{…}, {…}]`, with random access. Used by `open_rows`.

An array can only be read from its beginning, so its elements are copied once into the cache folder, one a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from slime_core.data.cache import cached_copy
from slime_core.data.files import content_digest
from slime_core.data.jsonl import BOM, SPACE, JsonLinesFile
from slime_core.errors import DataError
from slime_core.plain import require_row_size

_PIECE = 4 << 20  # bytes
_DEPTH = {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}
_NAMES = {
    "start_array": "a list",
    "string": "a string",
    "number": "a number",
    "boolean": "a boolean",
    "null": "null",
}
_HARD = re.compile(rb"[0-9]{5,}|NaN|Infinity|[\x80-\xff]+")


class JsonArrayFile:
    """A `.json` file that holds one array of objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = content_digest(path)
        self._lines = JsonLinesFile(cached_copy(path, self._digest, ".jsonl", self._write_lines))

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, index: int) -> Any:
        """Return row `index`, parsed. Raises `DataError` with the column, without file and row."""
        return self._lines.read(index)

    def row_number(self, index: int) -> int:
        """Return the position in the array, counted from 1."""
        return index + 1

    def digest(self) -> str:
        """Return the digest of the whole content."""
        return self._digest

    def _write_lines(self, copy: Path) -> None:
        written = 0
        with self.path.open("rb") as file, copy.open("wb") as lines:
            try:
                for element in array_elements(file):
                    lines.write(element.replace(b"\n", b" ") + b"\n")  # no string of JSON holds a line end as it is
                    written += 1
            except DataError as error:
                raise DataError(
                    f"{self.path}:{written + 1}: {error}. "
                    "Expected one array of objects, [{…}, {…}]; repair the file."
                ) from None


def is_array(path: Path) -> bool:
    """Whether a `.json` file holds an array, rather than an object a line."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    return start.removeprefix(BOM).lstrip(SPACE)[:1] == b"["


def array_elements(file: BinaryIO) -> Iterator[bytes]:
    """Yield the objects of a JSON array as they stand in the file. Memory holds one of them and a piece of the file.

    ijson is told the structure and finds where an object ends; the values are left to Python's own `json`, which reads
    the objects later. For ijson's parsers do not read all that `json` does: numbers of thousands of digits crash the
    one in C, which also makes a question mark of half a surrogate pair; the one in Python takes +1 for a number; none
    knows NaN. So numbers that are hard to read, and whatever is not ASCII, are replaced in what ijson is given.

    Raises:
        DataError: the file is no array of objects; without file and row.
    """
    import ijson

    events = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events)
    parts: list[bytes] = []
    depth = size = 0
    try:
        for piece in _pieces(file):
            parser.send(_HARD.sub(b"1111", piece))
            parts.append(piece)
            for event, _ in events:
                if depth == 1 and event not in ("start_map", "end_array"):
                    raise DataError(f"found {_NAMES.get(event, event)} in the place of an object")
                depth += _DEPTH.get(event, 0)
            size += len(piece)
            require_row_size(size)
            if depth == 1 and events and events[-1][0] == "end_map":
                element = b"".join(parts)
                yield element[element.index(b"{") :]
                parts, size = [], 0
            events.clear()
        parser.close()
    except (ijson.JSONError, ValueError) as error:
        raise DataError(f"not valid JSON: {str(error).splitlines()[0].rstrip('.')}") from None


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content in pieces that end with `}`, where an object may end; the last one is what follows."""
    rest = file.read(len(BOM)).removeprefix(BOM)
    while piece := file.read(max(_PIECE, len(rest))):  # doubles while there is no } in it
        *whole, rest = (rest + piece).split(b"}")
        require_row_size(len(rest))
        yield from (part + b"}" for part in whole)
    yield rest
