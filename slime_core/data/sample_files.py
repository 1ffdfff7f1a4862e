"""Files of samples: rollouts that are dumped, and the samples in checkpoints. An Arrow file with a row for each sample, which pandas, polars and
pyarrow read as well (`pandas.read_feather`).

| columns | |
|---|---|
| `group` | the number of the sample's group in the file |
| `index`, `group_index`, `rollout_id`, `status`, `prompt`, `response`, `label`, `reward`, `response_length`, `remove_sample` | the fields of \
`Sample`, where they have the usual type |
| `tokens`, `loss_mask`, `rollout_log_probs` | lists with an entry for each token, in the fewest bytes that keep every bit |
| `weight_versions`, `weight_version_names` | for each token of the response the place of its version among the names, which are JSON |
| `images`, `images_of` | the bytes of the images, or the number of an earlier row that has the same ones |
| `metadata` | JSON |
| `further` | JSON: fields of other types, such as messages or rewards that are objects, and what hooks have set besides |
| `ints`, `floats` | long lists of numbers inside of `metadata` and `further`, where `{"$floats": 0}` stands in their place |
| `train_NAME` | what else is known of every token in training, such as `train_advantages` |

The metadata of the schema has the version of the format and a head, such as the metrics of a rollout. Nothing in a file is executed, and none takes
more memory than a multiple of its size.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.data.arrow_messages import read_batches, read_schema
from slime_core.data.sample_columns import (
    Rows,
    SampleWriter,
    StoredSample,
    require_schema,
    samples_of,
    schema_for,
    token_columns,
)
from slime_core.errors import DataError, SampleError
from slime_core.plain import read_json
from slime_core.sample import Sample

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
_KEY = b"slime_samples"
_BYTES_IN_BATCH = 16 << 20


class PackedSamples:
    """Samples on their way into a file.

    Args:
        samples: in the order of the file.
        groups: the numbers of their groups; None where there are none.
        head: plain data that is stored with them.
        rows: further columns.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        groups: Sequence[int] | None = None,
        head: Mapping[str, Any] | None = None,
        rows: Mapping[str, Rows] | None = None,
    ) -> None:
        self._samples, self._rows = samples, rows or {}
        self._groups: Sequence[int | None] = [None] * len(samples) if groups is None else groups
        self._tokens = [token_columns(sample) for sample in samples]
        self._kept: list[pa.RecordBatch] | None = None
        stored = json.dumps({"version": VERSION, "samples": len(samples), "head": dict(head or {})})
        self.schema: pa.Schema = schema_for(self._tokens, self._rows, {_KEY: stored.encode()})

    def keep(self) -> PackedSamples:
        """Take all of it out of the samples now: whatever becomes of them until the file is written, it has what they are now."""
        self._kept = list(self._batches())
        self._samples, self._groups, self._tokens, self._rows = [], [], [], {}
        return self

    def write(self, path: Path) -> None:
        """Write the file in one step: whoever reads it meanwhile finds what was there before.

        Raises:
            OSError: it cannot be written.
        """
        import pyarrow as pa

        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)  # of a process that was killed
        try:
            with temporary.open("xb") as file, pa.ipc.new_file(file, self.schema) as writer:
                for batch in self._batches() if self._kept is None else self._kept:
                    writer.write_batch(batch)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _batches(self) -> Iterator[pa.RecordBatch]:
        writer = SampleWriter(self.schema)
        for number, (sample, tokens, group) in enumerate(
            zip(self._samples, self._tokens, self._groups, strict=True), 1
        ):
            writer.add(sample, tokens, group, {name: values[number - 1] for name, values in self._rows.items()})
            if writer.size >= _BYTES_IN_BATCH or number == len(self._samples):
                yield writer.batch()


class SampleFile:
    """A file of samples that is read, one batch of rows at a time.

    Args:
        path: it is mapped, not read, until it is iterated over.

    Attributes:
        head: what was stored with the samples.
        rows: the names of further columns.

    Raises:
        DataError: it is none, or of a newer version.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        with path.open("rb") as file:
            try:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise DataError(f"{path} is empty.") from None
        self._content = pa.py_buffer(content)
        try:
            schema, _ = read_schema(self._content)
            self.head, self._count = _head(schema)
            self.rows = require_schema(schema)
        except DataError as error:
            raise self._named(error) from None

    def read(self, first: int = 0) -> Iterator[StoredSample]:
        """Yield the samples from a row on, counted from 0. Those before are only looked at as far as later ones need it.

        Raises:
            DataError: the file is damaged; names it, and says behind which sample.
        """
        images: list[list[bytes]] = []
        number = 0
        try:
            for batch in read_batches(*read_schema(self._content)):
                for make in samples_of(batch, images, self.rows):
                    if number >= first:
                        yield make()
                    number += 1
            if number != self._count:
                raise DataError(f"it is cut off, or has more than it says: {self._count} samples")
        except (DataError, SampleError) as error:
            raise self._named(error, number) from None

    def _named(self, error: Exception, row: int | None = None) -> DataError:
        where = "" if row is None else f", after {row} samples"
        return DataError(f"{self.path} cannot be read as a file of samples{where}: {str(error).rstrip('.')}.")


def _head(schema: pa.Schema) -> tuple[dict[str, Any], int]:
    """What a file says of itself: its head, and the number of its samples."""
    stored = (schema.metadata or {}).get(_KEY)
    if stored is None:
        raise DataError("it is an Arrow file, but not one of samples")
    found = read_json(stored.decode(errors="replace"))
    version = found.get("version") if isinstance(found, dict) else None
    if type(version) is not int:
        raise DataError("what it says of itself is damaged")
    if version > VERSION:
        raise DataError(
            f"it has version {version} of the format, and this slime reads up to {VERSION}; read it with a newer one"
        )
    head, count = found.get("head"), found.get("samples")
    if not isinstance(head, dict) or type(count) is not int:
        raise DataError("what it says of itself is damaged")
    return head, count
