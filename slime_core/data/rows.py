"""`open_rows`: the rows of several data files as one sequence with random access.

Called by the data source, by evaluation and by the converters.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from slime_core.data.arrow import ArrowFile
from slime_core.data.files import find_files, parse_spec
from slime_core.data.json_array import JsonArrayFile, is_array
from slime_core.data.jsonl import JsonLinesFile
from slime_core.errors import DataError


class RowFile(Protocol):
    """One opened data file."""

    path: Path

    def __len__(self) -> int:
        """How many rows it has."""
        ...

    def read(self, index: int) -> Any:
        """Return row `index`, parsed. Raises `DataError` without file and row."""
        ...

    def row_number(self, index: int) -> int:
        """Return what messages call row `index`, counted from 1."""
        ...

    def digest(self) -> str:
        """Return the digest of the whole content."""
        ...


class Rows:
    """Rows of data files, numbered from 0. Made by `open_rows`.

    Reading needs memory for one row. Rows may be read from several threads.
    """

    def __init__(self, parts: Sequence[tuple[RowFile, range]]) -> None:
        self._parts = list(parts)
        self._ends = list(accumulate(len(selected) for _, selected in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return row `index` as a dict.

        Raises:
            DataError: the row cannot be parsed or is not an object; names file, row and column.
        """
        file, position = self._locate(index)
        return object_row(lambda: file.read(position), lambda: self.where(index))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> str:
        """Return what messages call row `index`: "file:row", the row counted from 1."""
        file, position = self._locate(index)
        return f"{file.path}:{file.row_number(position)}"

    def firsts(self) -> Iterator[int]:
        """Yield the number of the first row of every file, as far as it is selected."""
        return (end - len(selected) for end, (_, selected) in zip(self._ends, self._parts, strict=True))

    def fingerprint(self) -> dict[str, str]:
        """Return {file: digest of its whole content}."""
        return {str(file.path): file.digest() for file, _ in self._parts}

    def _locate(self, index: int) -> tuple[RowFile, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        part = bisect_right(self._ends, index)
        file, selected = self._parts[part]
        return file, selected[index - (self._ends[part - 1] if part else 0)]


def object_row(read: Callable[[], Any], where: Callable[[], str]) -> dict[str, Any]:
    """Return what `read` gives, if it is an object.

    Args:
        read: gives the parsed row.
        where: gives its "file:row", for messages.

    Raises:
        DataError: it cannot be parsed or is no object; names file, row and column.
    """
    try:
        row = read()
    except DataError as error:
        raise DataError(f"{where()}: {error}. Expected one object; repair or remove the row.") from None
    if not isinstance(row, dict):
        raise DataError(
            f"{where()}: the row is a {_json_name(row)}, expected an object like "
            '{"messages": [...]}; repair or remove it.'
        )
    return row


def open_rows(specs: Sequence[str]) -> Rows:
    """Open data files.

    Args:
        specs: paths of `.jsonl`, `.json`, `.parquet`, `.arrow` and `.feather` files or of `datasets.save_to_disk`
            folders, or globs of them, each with an optional `@[a:b]`, a slice of all the rows that it names.

    Raises:
        DataError: a file is missing, empty, of an unknown kind or unreadable; a glob or slice selects nothing.
    """
    opened: dict[Path, RowFile] = {}
    return Rows([part for spec in specs for part in _open_spec(spec, opened)])


LOOKED_AT = 1000
"""Rows of every path among which one is looked for that has what a row may lack."""


def first_rows(specs: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the first rows of each path or glob, at most `LOOKED_AT`, without those that cannot be read."""
    for rows in map(open_rows, ([spec] for spec in specs)):
        for number in range(min(len(rows), LOOKED_AT)):
            try:
                row = rows[number]
            except DataError:  # told by what reads the rows
                continue
            yield row


def _open_spec(spec: str, opened: dict[Path, RowFile]) -> list[tuple[RowFile, range]]:
    pattern, rows = parse_spec(spec)
    files = []
    for path in find_files(pattern):
        if path not in opened:
            opened[path] = _open_file(path)
        files.append(opened[path])
    total = sum(len(file) for file in files)
    start, stop, _ = rows.indices(total)
    if start >= stop:
        raise DataError(f"{spec} selects no row: {pattern} has {total}.")
    parts, first = [], 0
    for file in files:
        selected = range(max(0, start - first), min(len(file), stop - first))
        if selected:
            parts.append((file, selected))
        first += len(file)
    return parts


def _open_file(path: Path) -> RowFile:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; expected at least one row.")
        file = _open_format(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(file) == 0:
        raise DataError(f"{path} holds no row; expected at least one.")
    return file


def _open_format(path: Path) -> RowFile:
    extension = path.suffix.lower()
    if extension == ".json" and is_array(path):
        return JsonArrayFile(path)
    return JsonLinesFile(path) if extension in (".json", ".jsonl") else ArrowFile(path)


def _json_name(value: Any) -> str:
    names = {list: "list", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
