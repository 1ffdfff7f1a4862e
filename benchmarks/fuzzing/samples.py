"""Dumps of samples: damaged, cut off, or written by somebody else."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from random import Random

from benchmarks.fuzzing.damage import TEXTS, damaged, mutated
from benchmarks.fuzzing.outcome import slime


def attempt(r: Random, folder: Path) -> Callable[[], None]:
    """A dump, read as a run does and as a person looks at it."""
    return partial(read_samples, damaged_samples(r, folder))


@cache
def sample_file() -> bytes:
    """A dump with something in every column, in two batches."""
    import pyarrow as pa

    from slime_core.data.sample_files import PackedSamples
    from slime_core.sample import Sample

    samples = [
        Sample(
            index=n,
            group_index=n // 2,
            prompt=[{"role": "user", "content": "hé"}] if n % 3 else "hé",
            images=[b"png", b"jpeg"] if n % 2 else [],
            tokens=[1, 2, 3 + n],
            response="ok",
            response_length=2,
            label=n,
            reward={"acc": 1.0} if n % 4 == 0 else 0.5,
            loss_mask=[1, 0],
            rollout_log_probs=[-0.1, -0.5],
            weight_versions=[n, "step-1"],
            metadata={"long": list(range(100)), "floats": [0.5] * 70, "deep": [[n]]},
        )
        for n in range(8)
    ]
    for sample in samples:
        sample.tool_calls = 2  # type: ignore[attr-defined]  # as hooks do
    packed = PackedSamples(
        samples, [sample.index // 2 for sample in samples if sample.index is not None], {"metrics": {"x": 1.0}}
    )
    with tempfile.TemporaryDirectory() as folder:
        packed.write(Path(folder) / "dump")
        table = pa.ipc.open_file((Path(folder) / "dump").read_bytes()).read_all()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return bytes(sink.getvalue().to_pybytes())


def damaged_samples(r: Random, folder: Path) -> Path:
    """This file with damaged bytes, cut off, or written by somebody else: with other columns, types, numbers or another head."""
    import pyarrow as pa

    file = folder / "dump.arrow"
    if r.random() < 0.6:
        file.write_bytes(damaged(r, sample_file()))
        return file
    table = pa.ipc.open_file(sample_file()).read_all()
    name = r.choice(table.schema.names)
    place, column = table.schema.get_field_index(name), table.column(name)
    how = r.choice(("left out", "twice", "type", "values", "values", "values", "order", "head"))
    if how == "left out":
        table = table.drop_columns([name])
    elif how == "twice":
        table = table.append_column(name, column)
    elif how == "type":
        other = r.choice(
            (pa.string(), pa.large_string(), pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.int8(), pa.null())
        )
        table = table.set_column(place, name, pa.nulls(len(table), other))
    elif how == "values":
        values = [r.choice((value, None, *column.to_pylist())) for value in column.to_pylist()]
        if pa.types.is_list(column.type) and pa.types.is_integer(column.type.value_type):
            values[r.randrange(8)] = r.choice(([], [200], [0, None], [7] * 2, [1] * 70))
        elif pa.types.is_integer(column.type):
            values[r.randrange(8)] = r.choice((-1, 2**62, 99))
        elif pa.types.is_string(column.type):
            values[r.randrange(8)] = r.choice((*TEXTS[:5], *TEXTS[6:], '{"$floats": 9}', "[[1]]", '{"tokens": [1]}'))
        with suppress(pa.ArrowInvalid, UnicodeEncodeError):  # of what no file can hold
            table = table.set_column(place, table.schema.field(place), pa.array(values, column.type))
    elif how == "order":
        table = table.select(r.sample(table.schema.names, len(table.schema.names)))
    else:
        (key, head), *_ = table.schema.metadata.items()
        text = json.dumps(mutated(r, json.loads(head)))
        table = table.replace_schema_metadata({key: r.choice((text.encode(errors="replace"), damaged(r, head)))})
    with pa.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table, max_chunksize=r.choice((3, 8)))
    return file


def read_samples(file: Path) -> None:
    """Read a dump as a run does, and as a person looks at it."""
    from slime_core.rollout.debug_data import read_debug_data

    for words in ((), ("--json",)):
        if slime("samples", str(file), *words) not in (0, 1, 2):
            raise RuntimeError("slime samples ended with another status than 0, 1 and 2")
    read_debug_data(file)
