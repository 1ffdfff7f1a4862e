"""Damaged and hostile inputs by the thousand: rows, Arrow and Parquet files, recipes and command lines, checkpoints, files of samples.

    python -m benchmarks.fuzz                    # everything, about 20 minutes
    python -m benchmarks.fuzz --only rows --count 2000 --seed 7

Every input is read in a process of its own (rows in files of 500) that may take 4 GiB and two minutes. It may be read, or
refused with one of the project's exceptions. A traceback, a signal or more time is a fault: its input is kept, and the status is 1.
tests/test_fuzz.py tries a few of each in every test run.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from benchmarks.fuzzing import arrow, checkpoints, recipes, rows, samples
from benchmarks.fuzzing.outcome import outcome

KINDS = {
    "rows": (rows.attempt, 20_000),
    "arrow": (arrow.attempt, 500),
    "recipes": (recipes.attempt, 2_000),
    "checkpoints": (checkpoints.attempt, 200),
    "samples": (samples.attempt, 500),
}
"""What makes an input and gives what reads it, and how many are tried."""


def fuzz(kind: str, count: int, seed: int, folder: Path, model: str | None = None) -> tuple[Counter[str], float]:
    """Try `count` inputs of one kind. Faults are printed, and their inputs kept in the folder.

    Args:
        model: a Hugging Face folder, with whose tokenizer rows are previewed.

    Returns:
        how often what came of it, and the most seconds that one took.
    """
    attempt, _ = KINDS[kind]
    os.environ["SLIME_CACHE"] = str(folder / "cache")
    counted: Counter[str] = Counter()
    longest = 0.0
    for number in range(0, count, rows.IN_A_FILE if kind == "rows" else 1):
        r, own = Random(f"{seed} {kind} {number}"), folder / f"{kind}-{seed}-{number}"
        own.mkdir()
        inputs = min(rows.IN_A_FILE, count - number) if kind == "rows" else 1
        read = rows.attempt(r, own, inputs, model) if kind == "rows" else attempt(r, own)
        started = time.monotonic()
        said = outcome(read)
        longest = max(longest, time.monotonic() - started)
        what = said.partition("\n")[0]
        counted[what] += inputs
        if what in ("read", "refused"):
            shutil.rmtree(own)
        else:
            print(f"FAULT {own}: {said}", flush=True)
    return counted, longest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS, help="one kind of inputs")
    parser.add_argument("--count", type=int, help="how many; by default what the kind asks for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="a Hugging Face folder: rows are previewed with its tokenizer, too")
    parser.add_argument("--folder", type=Path, help="where the inputs of faults stay")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    faults = 0
    for kind in [options.only] if options.only else KINDS:
        started = time.monotonic()
        counted, longest = fuzz(kind, options.count or KINDS[kind][1], options.seed, folder, options.model)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(
            f"{kind}: {dict(counted)}; {time.monotonic() - started:.0f} s in all, the longest {longest:.1f} s, at most {peak:.0f} MiB",
            flush=True,
        )
        faults += sum(number for what, number in counted.items() if what not in ("read", "refused"))
    print(f"{faults} faults" + (f"; their inputs are in {folder}" if faults else ""))
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
