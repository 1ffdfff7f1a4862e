"""Arrow files of a schema that is known, read from untrusted bytes. Called by `slime_core.data.sample_columns`.

A file says itself how large everything in it is. pyarrow believes some of that: it takes memory for what a compressed buffer
claims to unpack to, and follows offsets wherever they lead. So only what needs no memory is accepted (uncompressed batches, which lie
in the file as they are), and every batch is validated before anything of it is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from slime_core.data.arrow_validity import validate
from slime_core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

MAGIC = b"ARROW1"
_FIRST = 8  # bytes before the first message
_BODY_COMPRESSION, _HEADER = 3, 2  # fields of the flatbuffers tables RecordBatch and Message


def read_schema(file: pa.Buffer) -> tuple[pa.Schema, pa.ipc.MessageReader]:
    """Return the schema of an Arrow file, and what reads the messages after it.

    Raises:
        DataError: it is none.
    """
    import pyarrow as pa

    if file.slice(0, len(MAGIC)).to_pybytes() != MAGIC:
        raise DataError("it is no Arrow file")
    if file.slice(max(0, file.size - len(MAGIC))).to_pybytes() != MAGIC:
        raise DataError("it is cut off")
    try:
        messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(file.slice(_FIRST)))
        return pa.ipc.read_schema(messages.read_next_message()), messages
    except (pa.ArrowException, StopIteration, EOFError, ValueError, OSError) as error:
        raise damaged(error) from None


def read_batches(schema: pa.Schema, messages: pa.ipc.MessageReader) -> Iterator[pa.RecordBatch]:
    """Yield the validated batches of a file, which lie where it lies.

    Raises:
        DataError: the file is damaged or cut off, or has something compressed.
    """
    import pyarrow as pa

    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        except (pa.ArrowException, EOFError, ValueError, OSError) as error:
            raise damaged(error) from None
        if message.type != "record batch":
            raise DataError(f"it holds a message of the type {message.type!r}, which files of samples have none of")
        if _is_compressed(message.metadata.to_pybytes()):
            raise DataError(
                "it is compressed, which files of samples are not: what it claims to hold would be believed"
            )
        try:
            batch = pa.ipc.read_record_batch(message, schema)
            validate(batch)
        except (pa.ArrowException, ValueError, OSError, MemoryError, OverflowError) as error:
            raise damaged(error) from None
        yield batch


def damaged(error: Exception) -> DataError:
    """The error to raise where pyarrow cannot read something."""
    return DataError(f"it is damaged or cut off ({(str(error).splitlines() or [type(error).__name__])[0]})")


def _is_compressed(message: bytes) -> bool:
    """Whether the metadata of a record batch names a compression. The metadata is a flatbuffers table `Message` whose field `header`
    is the table `RecordBatch` (https://github.com/apache/arrow/blob/main/format/Message.fbs). pyarrow has verified it."""
    try:
        root = struct.unpack_from("<I", message, 0)[0]
        header = _field(message, root, _HEADER)
        if header is None:
            return True  # nothing that is known
        table = header + struct.unpack_from("<I", message, header)[0]
        return _field(message, table, _BODY_COMPRESSION) is not None
    except struct.error:
        return True


def _field(message: bytes, table: int, number: int) -> int | None:
    """Where the field of a flatbuffers table lies; None where the table has none."""
    entries = table - struct.unpack_from("<i", message, table)[0]
    size = struct.unpack_from("<H", message, entries)[0]
    place = 4 + 2 * number
    offset = struct.unpack_from("<H", message, entries + place)[0] if place < size else 0
    return table + offset if offset else None
