"""Arrow and Parquet files of every kind, with damaged bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from random import Random

from benchmarks.fuzzing.damage import damaged
from benchmarks.fuzzing.rows import read_rows


def attempt(r: Random, folder: Path) -> Callable[[], None]:
    """One of these files, read as rows."""
    return partial(read_rows, damaged_arrow(r, folder), None, convert=False)


@cache
def arrow_files() -> dict[str, bytes]:
    """A file of every kind, by name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    r = Random(0)
    rows = [
        {
            "messages": [
                {"role": "user", "content": "x" * r.randint(5, 80)},
                {"role": "assistant", "content": "héllo " * r.randint(1, 3)},
            ],
            "label": str(n),
            "share": n / 3,
            "metadata": {"a": None if n % 2 else [1, n]},
        }
        for n in range(300)
    ]
    table = pa.Table.from_pylist(rows)
    table = table.append_column("kind", pa.array([str(n % 7) for n in range(300)]).dictionary_encode())
    made = {}
    for name, new, packing in (
        ("file.arrow", pa.ipc.new_file, None),
        ("stream.arrow", pa.ipc.new_stream, None),
        ("zstd.arrow", pa.ipc.new_file, "zstd"),
        ("lz4.feather", pa.ipc.new_file, "lz4"),
    ):
        sink = pa.BufferOutputStream()
        with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=packing)) as writer:
            writer.write_table(table, max_chunksize=64)
        made[name] = sink.getvalue().to_pybytes()
    for packing in ("none", "snappy", "zstd", "gzip"):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression=packing, row_group_size=100)
        made[f"{packing}.parquet"] = sink.getvalue().to_pybytes()
    return made


def damaged_arrow(r: Random, folder: Path) -> Path:
    """One of these files, damaged."""
    name = r.choice(sorted(arrow_files()))
    file = folder / name
    file.write_bytes(damaged(r, arrow_files()[name]))
    return file
