"""Arrow and Parquet with random access, through a memory map. Used by `open_rows`.

Parquet and compressed Arrow cannot be read row by row, so they are copied once into an uncompressed Arrow file in the
cache folder.
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

from slime_core.data.cache import cached_copy
from slime_core.data.files import content_digest
from slime_core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

JSON_COLUMNS = b"slime_json_columns"
"""Key of the schema metadata that lists, as JSON, the columns whose strings hold JSON: `["tools"]`, and
`["messages", "tool_calls"]` for a field of the structs in a list. Written by `slime_core.data.convert`."""

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
        except (pa.ArrowException, ValueError, EOFError) as error:
            raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}. Write the file again.") from None
        self._batches = batches
        self._ends = list(accumulate(batch.num_rows for batch in batches))
        metadata = (batches[0].schema.metadata or {}) if batches else {}
        self._json_columns = json.loads(metadata.get(JSON_COLUMNS, b"[]"))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, index: int) -> dict[str, Any]:
        """Return row `index` as plain Python data.

        Keys that are null inside a struct are left out: Arrow gives all structs of a column the same keys and pads
        with nulls. Top-level columns are kept.
        """
        self._count_read()
        batch = bisect_right(self._ends, index)
        start = self._ends[batch - 1] if batch else 0
        row = self._batches[batch].slice(index - start, 1).to_pylist()[0]
        row = {key: _without_padding(value) for key, value in row.items()}
        for column, *field in self._json_columns:  # after the padding is gone: a null in JSON is meant
            row[column] = _decode_json(row[column], field)
        return row

    def row_number(self, index: int) -> int:
        """Return the position in the file, counted from 1."""
        return index + 1

    def digest(self) -> str:
        """Return the digest of the whole content."""
        if self._digest is None:
            self._digest = content_digest(self.path)
        return self._digest

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
            if not all(whole.address <= part.address < whole.address + whole.size for part in _buffers(batch)):
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
        for batch in batches:
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


def _without_padding(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_padding(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_padding(inner) for inner in value]
    return value


def _decode_json(value: Any, field: list[str]) -> Any:
    if value is None:
        return None
    if not field:
        return json.loads(value)
    return [{key: json.loads(inner) if key == field[0] else inner for key, inner in item.items()} for item in value]
