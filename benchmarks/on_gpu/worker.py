"""The process that does jobs of `benchmarks.gpu`, one after the other: `python -m benchmarks.on_gpu.worker`. `benchmarks.gpu` starts it,
and starts another one where it ends before it has done all: a GPU on which something went wrong serves its process no more."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.catalogue import JOBS
from benchmarks.on_gpu.job import Findings, Job, NotHere
from benchmarks.on_gpu.results import append

UNUSABLE = 3
"""Exit status: the device answers this process no more; what is left is for another one."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--running", type=Path, required=True, help="the name of the job that is being done is written here"
    )
    parser.add_argument("--ends", type=float, required=True, help="no job is begun that would last beyond this time")
    parser.add_argument("--without-gpu", action="store_true")
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[])
    parser.add_argument("--jobs", required=True, help="names, with commas in between")
    given = parser.parse_args()
    # Some jobs train in deterministic mode, for which it must be set before CUDA starts. On an H100 torch takes as much anyway.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    from benchmarks.on_gpu.machine import Machine

    torch.set_num_threads(1 if given.without_gpu else 8)
    by_name = {job.name: job for job in JOBS}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        machine = Machine(not given.without_gpu, given.out, Path(scratch), given.peak_tflops, given.options)
        append(given.out, {"machine": machine.describe()})
        for name in given.jobs.split(","):
            job = by_name[name]
            if machine.on_gpu and time.time() + job.seconds > given.ends:
                continue
            given.running.write_text(json.dumps({"job": name, "began": time.time(), "limit": job.limit}))
            append(given.out, do(job, machine))
            given.running.write_text("")
            try:
                machine.clean()
                machine.sync()
            except RuntimeError:
                return UNUSABLE
    return 0


def do(job: Job, machine: Any) -> dict[str, Any]:
    """Do a job, and return its line of the results. Whatever goes wrong is part of it."""
    print(f"{job.name} …", flush=True)
    found, started = Findings(), time.perf_counter()
    line: dict[str, Any] = {"job": job.name, "status": "ok"}
    try:
        job.work(machine, found)
        if found.outside:
            line |= {"status": "failed", "outside": found.outside, "why": "; ".join(found.outside)}
    except NotHere as reason:
        line |= {"status": "skipped", "why": str(reason)}
    except (Exception, SystemExit) as error:
        text = traceback.format_exc()
        with suppress(Exception):  # frames hold on to tensors
            traceback.clear_frames(error.__traceback__)
        line |= {"status": "failed", "why": f"{type(error).__name__}: {error}"[:2000], "traceback": text[-8000:]}
    line |= {"seconds": round(time.perf_counter() - started, 3), "found": found.figures}
    why = f": {line['why']}" if "why" in line else ""
    print(f"{job.name}: {line['status']}, {line['seconds']:.1f} s{why[:600]}", flush=True)
    return line


if __name__ == "__main__":
    sys.exit(main())
