"""`validate`: whatever a record batch of Arrow points to lies in it. Called by `ArrowFile`.

pyarrow checks that when it is asked to, and text too: that it is UTF-8. A text that is not is the mistake of one row, and
reading it does no harm; so where it is the only one, the batch is valid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def validate(batch: pa.RecordBatch) -> None:
    """Check offsets, lengths, types and indices of all columns.

    Raises:
        pyarrow.ArrowException, ValueError: reading the batch could end the process.
    """
    for column in batch.columns:
        try:
            column.validate(full=True)
        except ValueError as error:
            if "UTF8" not in str(error):
                raise
            column.view(_as_bytes(column.type)).validate(full=True)


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """Return a type of the same layout that has bytes in the place of text."""
    import pyarrow as pa

    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(part.name, _as_bytes(part.type), part.nullable) for part in kind])
    if pa.types.is_list(kind):
        return pa.list_(_as_bytes(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_as_bytes(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(_as_bytes(kind.key_type), _as_bytes(kind.item_type))
    return kind
