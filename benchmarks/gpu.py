"""Checks and measures slime on one GPU: `python -m benchmarks.gpu --all`, on a bare machine without network (docs/gpu.md).

Models are of real shapes (Qwen3-0.6B, 1.7B, 4B, 8B, and a few layers of Qwen3-30B-A3B) with random weights that are made on the device.
Checks come first: bfloat16 against float32, kernels against references, engine against trainer, what must be equal bit for bit. Then
tokens per second, MFU, memory against its estimate, decoding against the bandwidth, the time without a kernel, and traces.

Each job writes a line to FOLDER/results.jsonl as soon as it is done. What fails is recorded with its traceback and ends nothing else;
a process that hangs or dies is replaced. When the time is over what is left is named, and `--earlier FOLDER` goes on from the results that
are there. Prints a table, which is also in FOLDER/results.md. --without-gpu does all of it on a CPU with tiny models, where figures mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.catalogue import JOBS
from benchmarks.on_gpu.job import PHASES
from benchmarks.on_gpu.kept import keep
from benchmarks.on_gpu.results import append, newest, read, table
from benchmarks.processes import ROOT, measured_environment, unwind_on_signals
from benchmarks.report import command, tell

BUNDLE = "SLIME_GPU_BUNDLE"
"""The environment variable with the folder that scripts/gpu-bundle.sh has made."""
WORKER = "benchmarks.on_gpu.worker"
ATTEMPTS = 8
"""So many processes in a row may end early."""


def main() -> int:
    given = _given()
    unwind_on_signals()
    if (bundle := os.environ.get(BUNDLE)) and (changed := changed_since(Path(bundle))):
        raise SystemExit(
            f"{bundle} was made of other code than is here: {', '.join(changed[:5])}. Run bash scripts/gpu-bundle.sh again."
        )
    if not given.without_gpu:
        from benchmarks.on_gpu.machine import require_gpu

        require_gpu()
    given.out.mkdir(parents=True, exist_ok=True)
    names = [job.name for job in JOBS if job.name in given.job or (given.all or job.phase in given.phase)]
    append(given.out, about := {"commit": commit(), "command": command("gpu"), "began": time.time()})
    earlier = [line for folder in given.earlier for line in read(folder)]
    done = {name for name, line in newest(earlier).items() if line["status"] != "failed"} if earlier else set()
    ends = time.time() + given.budget_seconds
    with tempfile.TemporaryDirectory() as scratch:
        _do([name for name in names if name not in done], given, Path(scratch) / "running", ends)
    own = read(given.out)
    about |= next((line["machine"] for line in reversed(own) if "machine" in line), {})
    found = newest([*earlier, *own])
    text = table(about, list(found.values()), [name for name in names if name not in found])
    (given.out / "results.md").write_text(text, encoding="utf-8")
    print(text)
    return int(any(line["status"] == "failed" for line in found.values()))


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="all phases, what matters most first")
    parser.add_argument("--phase", nargs="+", default=[], choices=PHASES, metavar="PHASE", help=", ".join(PHASES))
    parser.add_argument("--job", nargs="+", default=[], metavar="JOB", help="single jobs; --list names them")
    parser.add_argument("--list", action="store_true", help="name all jobs with the seconds that they take about")
    parser.add_argument(
        "--budget-seconds", type=float, default=540, help="nothing is begun that would last longer (540)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")), help="folder of results"
    )
    parser.add_argument(
        "--earlier", nargs="+", type=Path, default=[], help="folders of results: what is there is not done again"
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="write the results of these folders to benchmarks/results",
    )
    parser.add_argument("--peak-tflops", type=float, help="in bfloat16, of a device that this program does not know")
    parser.add_argument("--without-gpu", action="store_true", help="the same on a CPU, with tiny models")
    parser.add_argument(
        "--options", nargs=argparse.REMAINDER, default=[], help="all that follows: more options of slime, for every run"
    )
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"{job.name:<32} {job.seconds:4.0f} s" for job in JOBS))
        sys.exit()
    if given.keep:
        print(keep(given.keep))
        sys.exit()
    if unknown := sorted(set(given.job) - {job.name for job in JOBS}):
        parser.error(f"there is no job {unknown[0]}; --list names them")
    if not (given.all or given.phase or given.job):
        parser.error("say what to do: --all, --phase PHASE or --job JOB")
    given.out = given.out.resolve()
    return given


def _do(names: list[str], given: argparse.Namespace, running: Path, ends: float) -> None:
    """Have all jobs done by processes, each of which does as many as it can."""
    alone = {job.name for job in JOBS if job.alone}
    attempts = 0
    while names and time.time() < ends and attempts < ATTEMPTS:
        first = next((n for n, name in enumerate(names) if name in alone), len(names))
        now = names[: max(1, first)]
        lost = _process(now, given, running, ends)
        attempts = attempts + 1 if lost is not None else 0
        over = {line["job"] for line in read(given.out) if "job" in line}
        left = [name for name in now if name not in over]
        if lost is None:  # the others were not begun: there was no time for them
            left = []
        names = [*left, *names[len(now) :]]


def _process(names: list[str], given: argparse.Namespace, running: Path, ends: float) -> str | None:
    """Start a process for jobs and wait for it; return "" or the job that it was at, where it ended before it was through."""
    words = [sys.executable, "-m", WORKER, "--out", str(given.out), "--running", str(running)]
    words += ["--ends", str(ends), "--jobs", ",".join(names), *["--without-gpu"] * given.without_gpu]
    words += ["--peak-tflops", str(given.peak_tflops)] if given.peak_tflops else []
    words += ["--options", *given.options] if given.options else []
    environment = {**measured_environment(1 if given.without_gpu else 8), "PYTHONUNBUFFERED": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""} if given.without_gpu else {}
    running.write_text("")
    with (given.out / "log.txt").open("ab") as log:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            told = _follow(process, given.out / "log.txt", log.tell(), running, ends)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode == 0:
        return None
    job = json.loads(running.read_text() or "{}")
    if not job:
        return ""
    why = told or f"its process ended with status {process.returncode}"
    last = (given.out / "log.txt").read_text(errors="replace")[-3000:]
    seconds = round(time.time() - job["began"], 1)
    append(
        given.out,
        {"job": job["job"], "status": "failed", "why": why, "seconds": seconds, "found": {}, "traceback": last},
    )
    tell(f"{job['job']}: failed, {why}")
    return str(job["job"])


def _follow(process: subprocess.Popen[bytes], log: Path, begin: int, running: Path, ends: float) -> str:
    """Wait until a process has ended, or must be; print what it says about jobs. Returns why it must be ended, or ""."""
    place = begin
    while True:
        with log.open("rb") as file:
            file.seek(place)
            *lines, _ = file.read().split(b"\n")
        place += sum(len(line) + 1 for line in lines)
        for line in (line.decode(errors="replace") for line in lines):
            if line.startswith(tuple(f"{phase}/" for phase in PHASES)) and not line.endswith("…"):
                tell(line)
        if process.poll() is not None:
            return ""
        try:
            job: dict[str, Any] = json.loads(running.read_text() or "{}")
        except json.JSONDecodeError:  # is being written
            job = {}
        if job and time.time() > job["began"] + job["limit"]:
            return f"it had not ended after {job['limit']:.0f} s"
        if time.time() > ends + 30:
            return "the time was over"
        time.sleep(0.2)


def changed_since(bundle: Path, root: Path = ROOT) -> list[str]:
    """Files of slime that are others in the bundle than here, from where a part of the code is imported: it must be made anew."""
    sources = [root, *root.glob("*/src"), *root.glob("plugins/*/src")]
    found = []
    for wheel in sorted((bundle / "wheels").glob("slime_*.whl")):
        with zipfile.ZipFile(wheel) as content:
            for name in content.namelist():
                here = next((place for source in sources if (place := source / name).is_file()), None)
                if name.endswith(".py") and here is not None and here.read_bytes() != content.read(name):
                    found.append(name)
    return found


def commit() -> str:
    """Of the code: what the bundle was made of or, without one, what git says."""
    file = Path(os.environ.get(BUNDLE, "")) / "commit"
    if file.is_file():
        return file.read_text().strip()
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
