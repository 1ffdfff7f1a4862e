"""Arrow and Parquet with random access, through a memory map. Used by `open_rows`.

Parquet and compressed Arrow cannot be read row by row, so they are copied once into an uncompressed Arrow file in the
cache folder.

pyarrow believes what a file says of itself, and reading a row of a damaged one may end the process. So every batch is
validated before the first of its rows is read, its offsets and its text included.
"""

from __future__ import annotations

import json
import mmap
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.data.arrow_validity import validate
from slime_core.data.arrow_values import Meaning, meaning
from slime_core.data.cache import cached_copy
from slime_core.data.files import content_digest
from slime_core.errors import DataError
from slime_core.plain import MAX_ROW_BYTES, require_row_size

if TYPE_CHECKING:
    import pyarrow as pa

JSON_COLUMNS = b"slime_json_columns"
"""Key of the schema metadata that lists, as JSON, the columns whose strings hold JSON: `["tools"]`, and
`["messages", "tool_calls"]` for a field of the structs in a list. Written by `slime_core.data.convert`."""

MAX_UNPACKED, MIN_UNPACKED = 1000, 1 << 28
"""A compressed file may unpack to so many times its size, and to so many bytes more."""

_BATCH = 1024  # rows
_READS_BETWEEN_DROPS = 128


class ArrowFile:
    """An `.arrow`, `.feather` or `.parquet` file."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        self._digest: str | None = None
        self._reads = 0
        try:
            batches = self._map_batches(path) if path.suffix.lower() != ".parquet" else None
            if batches is None:
                batches = self._map_batches(self._copy()) or []
        except (pa.ArrowException, ValueError, EOFError, MemoryError, OverflowError) as error:
            raise DataError(
                f"{path} cannot be read as {path.suffix[1:]}: {_first_line(error)}. Write the file again."
            ) from None
        self._batches = batches
        self._valid: set[int] = set()
        self._large: set[int] = set()  # batches that are larger than a row may be
        self._ends = list(accumulate(batch.num_rows for batch in batches))
        self._meanings = _meanings(batches[0].schema) if batches else {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, index: int) -> dict[str, Any]:
        """Return row `index` as plain data; see `slime_core.data.arrow_values`. Columns that are null are kept.

        Raises:
            DataError: a value cannot be read; names the column, without file and row.
        """
        self._count_read()
        batch = bisect_right(self._ends, index)
        start = self._ends[batch - 1] if batch else 0
        if batch not in self._valid:
            self._validate(batch)
        one = self._batches[batch].slice(index - start, 1)
        if batch in self._large:
            require_row_size(one.nbytes)
        try:
            row: dict[str, Any] = one.to_pylist()[0]
        except (ValueError, OverflowError):  # text that is no UTF-8, or a time that Python has no object for
            row = {name: _first(name, column) for name, column in zip(one.schema.names, one.columns, strict=True)}
        for name, meant in self._meanings.items():
            if row[name] is not None:
                try:
                    row[name] = meant(row[name])
                except DataError as error:
                    raise DataError(f"the column {name!r}: {error}") from None
        return row

    def row_number(self, index: int) -> int:
        """Return the position in the file, counted from 1."""
        return index + 1

    def digest(self) -> str:
        """Return the digest of the whole content."""
        if self._digest is None:
            self._digest = content_digest(self.path)
        return self._digest

    def _validate(self, batch: int) -> None:
        """Check that whatever the batch points to lies in it. Raises `DataError` without file and row."""
        import pyarrow as pa

        try:
            validate(self._batches[batch])
        except (pa.ArrowException, ValueError) as error:
            raise DataError(f"the file is damaged here: {_first_line(error)}") from None
        if self._batches[batch].nbytes > MAX_ROW_BYTES:
            self._large.add(batch)
        self._valid.add(batch)

    def _copy(self) -> Path:
        return cached_copy(self.path, self.digest(), ".arrow", partial(_write_batches, self.path))

    def _map_batches(self, path: Path) -> list[pa.RecordBatch] | None:
        """Return the record batches of `path`, their buffers pointing into the map; None if the file is compressed."""
        import pyarrow as pa

        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        whole = pa.py_buffer(self._map)
        batches = []
        for batch in _batches(_ipc_reader(whole, self._map[:6])):
            inside = range(whole.address, whole.address + whole.size + 1)
            if not all(part.address in inside and part.address + part.size in inside for part in _buffers(batch)):
                return None
            batches.append(batch)
            self._count_read()
        return batches

    def _count_read(self) -> None:
        """Give the pages that were read back to the system every so often: it keeps them cached, but they no longer
        count as this process's memory, which would otherwise grow to the size of the file."""
        self._reads += 1
        if self._reads % _READS_BETWEEN_DROPS == 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _write_batches(original: Path, copy: Path) -> None:
    """Copy a Parquet or compressed Arrow file into an Arrow file that can be mapped, a batch at a time."""
    import pyarrow as pa

    schema, batches = _stream(original)
    with pa.OSFile(str(copy), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        written, most = 0, MAX_UNPACKED * original.stat().st_size + MIN_UNPACKED
        for batch in batches:
            validate(batch)
            written += batch.nbytes
            if written > most:
                raise ValueError(f"it unpacks to more than {MAX_UNPACKED} times its size")
            writer.write_batch(batch)


def _stream(path: Path) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
    """Return schema and record batches of a Parquet or compressed Arrow file, holding a piece of it at a time."""
    import pyarrow as pa

    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        parquet = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        return parquet.schema_arrow, parquet.iter_batches(_BATCH)
    with path.open("rb") as file:
        start = file.read(6)
    reader = _ipc_reader(pa.OSFile(str(path)), start)
    return reader.schema, _batches(reader)


def _ipc_reader(source: pa.Buffer | pa.NativeFile, start: bytes) -> pa.RecordBatchFileReader | pa.RecordBatchReader:
    """Open Arrow data, which is a file with an index, or a stream, as Hugging Face `datasets` writes it.

    Args:
        start: the first six bytes.
    """
    import pyarrow as pa

    return pa.ipc.open_file(source) if start == b"ARROW1" else pa.ipc.open_stream(source)


def _batches(reader: pa.RecordBatchFileReader | pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    if hasattr(reader, "get_batch"):
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)


def _buffers(batch: pa.RecordBatch) -> list[pa.Buffer]:
    return [part for column in batch.columns for part in column.buffers() if part is not None and part.size]


def _meanings(schema: pa.Schema) -> dict[str, Meaning]:
    """Return for each column what makes plain data of its values, where pyarrow does not give that already."""
    as_json = [tuple(entry) for entry in json.loads((schema.metadata or {}).get(JSON_COLUMNS, b"[]"))]
    meanings = {}
    for field in schema:
        inner = frozenset(entry[1] for entry in as_json if len(entry) == 2 and entry[0] == field.name)
        meant = meaning(field, inner, is_json=(field.name,) in as_json)
        if meant is not None:
            meanings[field.name] = meant
    return meanings


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _first(name: str, column: pa.Array) -> Any:
    """Return the first value of a column; a time that Python has no object for is its text.

    Raises:
        DataError: it cannot be read; without file and row.
    """
    import pyarrow as pa

    try:
        return column.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        if pa.types.is_temporal(column.type):
            return str(column.cast(pa.string())[0]).replace(" ", "T", 1)
        raise DataError(f"the column {name!r} cannot be read: {error}") from None
