"""How long a million rows take from opening the file to the first batch, and how much memory that and a long shuffled
read add. `python -m benchmarks.data`, or with `--rows N --format parquet`.

Generates the rows (about 0.9 GB), measures each format in a fresh process, and deletes them. For Parquet, the first
opening includes the one-off copy into the cache; the second one shows every later run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.quiet import add_option, beside_others, require_quiet, sentence

BATCH = 128
TARGET_S, TARGET_MB = 60, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", choices=("jsonl", "parquet", "both"), default="both")
    parser.add_argument("--folder", help="where to put the rows; the system's temporary folder by default")
    parser.add_argument("--measure", metavar="FILE", help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    print(f"{'':<26}{'file MB':>9}{'open s':>9}{'first batch s':>15}{'+MB':>7}{'100 batches s':>15}{'+MB':>7}")
    others: list[float] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:

        def measured(name: str, file: Path) -> None:
            require_quiet(options.under_load)
            others.append(beside_others(lambda: show(name, file, folder))[1])

        if options.format != "parquet":
            file = Path(folder) / "rows.jsonl"
            write_jsonl(file, options.rows)
            measured("jsonl", file)
            file.unlink()
        if options.format != "jsonl":
            file = Path(folder) / "rows.parquet"
            write_parquet(file, options.rows)
            measured("parquet, first opening", file)
            measured("parquet, later openings", file)
    print(f"target for {options.rows} rows: first batch within {TARGET_S} s, at most {TARGET_MB} MB added")
    print(sentence(others))


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Conversations of about 0.9 kB."""
    random_words = random.Random(0)
    words = [f"{random_words.getrandbits(28):x}" for _ in range(5000)]
    for number in range(count):
        text = random_words.choices(words, k=100)
        yield {
            "messages": [
                {"role": "user", "content": f"{number} {' '.join(text[:20])}"},
                {"role": "assistant", "content": " ".join(text[20:])},
            ]
        }


def write_jsonl(path: Path, count: int) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(count))


def write_parquet(path: Path, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([("messages", pa.list_(message))])
    source = rows(count)
    with pq.ParquetWriter(path, schema) as writer:
        while batch := [row for _, row in zip(range(50_000), source, strict=False)]:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def show(name: str, file: Path, folder: str) -> None:
    """Measure in a process of its own and print one line."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", "--measure", str(file)],
        env={**os.environ, "SLIME_CACHE": f"{folder}/cache"},
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(done.stdout)
    print(
        f"{name:<26}{file.stat().st_size / 1e6:>9.0f}{found['open_s']:>9.1f}{found['first_s']:>15.1f}"
        f"{found['first_mb']:>7.0f}{found['read_s']:>15.1f}{found['read_mb']:>7.0f}",
        flush=True,
    )


def measure(file: str) -> dict[str, float]:
    """Seconds since opening began, and peak resident memory above that of the bare interpreter."""
    from slime_core.arguments.namespace import Namespace
    from slime_core.arguments.resolve import resolve
    from slime_core.data import GlobalDataSource
    from slime_core.plugins import Plugins

    flags = [
        "--hf-checkpoint",
        "none",
        "--prompt-data",
        file,
        "--input-key",
        "messages",
        "--rollout-shuffle",
        "--num-rollout",
        "1",
    ]
    args = resolve(Namespace(Plugins()), [*flags, "--rollout-batch-size", str(BATCH)]).args
    before, clock = peak_mb(), time.perf_counter()
    source = GlobalDataSource(args)
    opened = time.perf_counter() - clock
    source.get_samples(BATCH)
    first, first_mb = time.perf_counter() - clock, peak_mb() - before
    for _ in range(100):
        source.get_samples(BATCH)
    read, read_mb = time.perf_counter() - clock - first, peak_mb() - before
    return {"open_s": opened, "first_s": first, "first_mb": first_mb, "read_s": read, "read_mb": read_mb}


def peak_mb() -> float:
    """Peak resident memory of this process so far, mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


if __name__ == "__main__":
    main()
