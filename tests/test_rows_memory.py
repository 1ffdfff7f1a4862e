"""Data files stay on disk: reading all rows of a large one in random order needs little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

ROWS, ROW_BYTES = 1500, 100_000

READ_ALL = """
import random, sys
import pyarrow, pyarrow.ipc
from slime_core.data import open_rows

def peak_mb():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) / 1e3

before = peak_mb()
rows = open_rows([sys.argv[1]])
order = list(range(len(rows)))
random.Random(0).shuffle(order)
assert all(rows[i]["n"] == i for i in order)
print(peak_mb() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.arrow"])
def test_reading_150_mb_of_rows_needs_under_50_mb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path / "cache"))
    path = tmp_path / name
    if name == "d.arrow":
        batch = pa.RecordBatch.from_pylist([{"n": 0, "text": "x" * ROW_BYTES}])
        with pa.ipc.new_file(path, batch.schema) as writer:
            for n in range(ROWS):
                writer.write_batch(batch.set_column(0, "n", pa.array([n])))
    else:
        start, between, end = ("", "\n", "\n") if name == "d.jsonl" else ("[", ",\n", "]")
        with path.open("w") as file:
            for n in range(ROWS):
                file.write((between if n else start) + json.dumps({"n": n, "text": "x" * ROW_BYTES}))
            file.write(end)
    assert path.stat().st_size > 150e6
    done = subprocess.run([sys.executable, "-c", READ_ALL, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 50
