"""`python -m benchmarks.gpu`: its jobs run without a GPU and without pyarrow, what fails ends nothing else, and the bundle has all packages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu
from benchmarks.on_gpu.catalogue import JOBS
from benchmarks.on_gpu.job import PHASES, Findings, Job, NotHere
from benchmarks.on_gpu.kept import keep, section
from benchmarks.on_gpu.kernels import Recorded
from benchmarks.on_gpu.machine import peak_of
from benchmarks.on_gpu.results import append, newest, read, table
from benchmarks.on_gpu.worker import do
from scripts.gpu_bundle_use import fits

ROOT = Path(__file__).parents[1]
THERE = ("torch", "transformers", "peft", "triton", "numpy")
"""What the machine has, with all that these need."""
NOT_CARRIED = {"pyarrow"}
"""Larger than all else together, and read for Arrow and Parquet files alone."""
BARE = """
import sys
sys.modules["pyarrow"] = None  # whoever imports it fails
from benchmarks.on_gpu.worker import main
sys.exit(main())
"""


def _needed(names: list[str], seen: set[str]) -> set[str]:
    """The distributions that these need, those that they need, and so on, as far as they are installed."""
    for name in map(canonicalize_name, names):
        if name in seen:
            continue
        seen.add(name)
        try:
            requirements = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        _needed([r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})], seen)
    return seen


def test_the_bundle_has_what_slime_needs_beyond_what_the_machine_has() -> None:
    listed = subprocess.run(
        ["bash", "scripts/gpu-bundle.sh", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    packages, own = (part.split() for part in listed.stdout.split("\n\n"))
    projects = [tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"] for folder in own]
    direct = [Requirement(text).name for project in projects for text in project.get("dependencies", [])]
    carried = {*packages, *(project["name"] for project in projects)}
    missing = _needed(direct, set()) - _needed([*THERE, *NOT_CARRIED], set()) - carried
    assert not missing, f"PACKAGES of scripts/gpu-bundle.sh lacks {', '.join(sorted(missing))}"


def test_no_name_of_a_registry_is_in_the_bundles_scripts() -> None:
    for name in ("gpu-bundle.sh", "gpu_bundle_use.py"):
        assert not re.search(r"https?://|index-url|pypi", (ROOT / "scripts" / name).read_text())


def test_a_bundle_of_other_code_is_found(tmp_path: Path) -> None:
    here = tmp_path / "plugins" / "slime-torch" / "src" / "slime_torch"
    here.mkdir(parents=True)
    (tmp_path / "bundle" / "wheels").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "bundle" / "wheels" / "slime_torch-0.1-py3-none-any.whl", "w") as wheel:
        for name in ("same", "changed"):
            wheel.writestr(f"slime_torch/{name}.py", name)
            (here / f"{name}.py").write_text("same")
    assert gpu.changed_since(tmp_path / "bundle", tmp_path) == ["slime_torch/changed.py"]


@pytest.mark.parametrize(
    ("wheel", "wanted"),
    [
        ("pluggy-1.7.0-py3-none-any.whl", True),
        ("six-1.0-py2.py3-none-any.whl", True),
        (f"pydantic_core-2.0-cp3{sys.version_info[1]}-cp3{sys.version_info[1]}-manylinux2014_x86_64.whl", True),
        ("pydantic_core-2.0-cp39-cp39-manylinux2014_x86_64.whl", False),
        ("some-1.0-cp39-abi3-manylinux2014_x86_64.whl", True),
    ],
)
def test_wheels_are_chosen_by_the_python_that_is_there(wheel: str, wanted: bool) -> None:
    assert fits(wheel) is wanted


def test_jobs_run_without_a_gpu_and_without_pyarrow(tmp_path: Path) -> None:
    jobs = ["checks/cross-entropy", "checks/bf16-against-fp32", "checks/resume", "profile/training-4B", "grpo/0.6B"]
    words = ["--out", str(tmp_path), "--running", str(tmp_path / "running"), "--ends", "0", "--without-gpu"]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *words, "--jobs", ",".join(jobs)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    found = newest(read(tmp_path))
    assert {name: line["status"] for name, line in found.items()} == dict.fromkeys(jobs, "ok"), (
        done.stdout + done.stderr
    )
    assert {"idle_share", "perf/generate_time", "perf/train_time"} <= found["grpo/0.6B"]["found"].keys()
    assert (tmp_path / "trace-training.json.gz").stat().st_size > 1000


def test_every_job_belongs_to_a_phase_and_has_a_name_of_its_own() -> None:
    assert {job.phase for job in JOBS} == set(PHASES)
    assert len({job.name for job in JOBS}) == len(JOBS)


def test_what_goes_wrong_in_a_job_is_in_its_line() -> None:
    def bounds(machine: object, found: Findings) -> None:
        found.within("error", float("nan"), 1.0)
        found.note(seconds=2.0)

    def broken(machine: object, found: Findings) -> None:
        found.note(before=1)
        raise ValueError("the kernel")

    def too_small(machine: object, found: Findings) -> None:
        raise NotHere("no room")

    first, second, third = (do(Job(f"checks/{work.__name__}", work), None) for work in (bounds, broken, too_small))
    assert (first["status"], first["found"]["seconds"]) == ("failed", 2.0)
    assert "error is nan; at most 1 was expected" in first["why"]
    assert (second["status"], second["found"]) == ("failed", {"before": 1})
    assert "ValueError: the kernel" in second["traceback"]
    assert (third["status"], third["why"]) == ("skipped", "no room")
    text = table({"device": "GPU"}, [first, second, third], ["sft/4B"])
    assert "3 jobs, 2 failed: checks/bounds, checks/broken" in text
    assert "Not done: sft/4B" in text


FAKE = """
import json, os, sys, time
from pathlib import Path
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
for name in given["--jobs"].split(","):
    Path(given["--running"]).write_text(json.dumps({"job": name, "began": time.time(), "limit": 1}))
    if name.endswith("attention"):
        os._exit(9)  # as a signal ends it
    if name.endswith("cross-entropy"):
        time.sleep(60)
    with open(given["--out"] + "/results.jsonl", "a") as file:
        file.write(json.dumps({"job": name, "status": "ok", "seconds": 0.0, "found": {}}) + chr(10))
    Path(given["--running"]).write_text("")
"""


def test_a_process_that_dies_or_hangs_costs_one_job_and_results_are_not_made_again(
    monkeypatch, tmp_path, capsys
) -> None:
    (tmp_path / "fake_gpu_worker.py").write_text(textwrap.dedent(FAKE))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu, "WORKER", "fake_gpu_worker")
    monkeypatch.setattr(gpu, "unwind_on_signals", lambda: None)
    names = ["checks/machine", "checks/attention", "checks/cross-entropy", "checks/offload", "grpo/0.6B", "sft/4B"]

    def run(out: str, *words: str) -> dict[str, str]:
        given = ["gpu", "--out", str(tmp_path / out), "--job", *names, *words, "--peak-tflops", "1"]
        monkeypatch.setattr(sys, "argv", given)
        monkeypatch.setattr("benchmarks.on_gpu.machine.require_gpu", lambda: None)
        assert gpu.main() == 1
        return {name: line["status"] for name, line in newest(read(tmp_path / out)).items()}

    started = time.perf_counter()
    first = run("first")
    bad = {"checks/attention", "checks/cross-entropy"}
    assert first == {name: "failed" if name in bad else "ok" for name in names}
    assert "status 9" in newest(read(tmp_path / "first"))["checks/attention"]["why"]
    assert "had not ended after 1 s" in newest(read(tmp_path / "first"))["checks/cross-entropy"]["why"]
    assert set(run("second", "--earlier", str(tmp_path / "first"))) == bad
    assert "6 jobs, 2 failed" in capsys.readouterr().out
    assert time.perf_counter() - started < 30
    about = json.loads((tmp_path / "first" / "results.jsonl").read_text().splitlines()[0])
    assert about["commit"]


def test_the_time_without_a_kernel_is_that_in_which_none_of_any_stream_ran() -> None:
    spans = [(0, 40, "a"), (30, 50, "b"), (70, 90, "a"), (35, 36, "c")]
    recorded = Recorded(0.1, [(begin * 10**6, end * 10**6, name) for begin, end, name in spans])
    assert recorded.busy() == pytest.approx(0.07)
    assert recorded.idle_share() == pytest.approx(0.3)
    assert recorded.longest_gaps() == [20.0]
    assert recorded.table()[0] == {"name": "a", "calls": 2, "ms": 60.0, "share": round(60 / 81, 4)}


def test_the_peak_is_that_of_the_whole_name() -> None:
    assert [peak_of(n) for n in ("NVIDIA H200", "NVIDIA H20", "NVIDIA H100 80GB HBM3", "else")] == [989, 148, 989, None]


def test_what_is_kept_of_several_runs_is_the_newest_of_each_job_and_is_on_the_page(tmp_path: Path) -> None:
    about = {"device": "NVIDIA X1", "versions": {"python": "3", "torch": "2", "transformers": "5", "triton": "3"}}
    trained = {"tokens_per_second": 1000.0, "tflops": 20.0, "peak_gib": 3.0, "estimate_gib": 4.0, "mfu": 0.25}
    runs = [
        [("sft/4B", "failed", {}), ("checks/twice", "ok", {"bit for bit": True})],
        [("sft/4B", "ok", trained), ("checks/resume", "failed", {})],
    ]
    for number, jobs in enumerate(runs):
        folder = tmp_path / str(number)
        folder.mkdir()
        append(folder, {"commit": f"commit{number}"})
        append(folder, {"machine": about})
        for job, status, found in jobs:
            append(folder, {"job": job, "status": status, "seconds": 1.0, "found": found})
    file = keep([tmp_path / "0", tmp_path / "1"], tmp_path)
    assert file.name == "gpu-nvidia-x1.json"
    text = "\n".join(section(file))
    assert "2 checks; failed jobs: checks/resume." in text
    assert "| sft/4B | 1,000 | 20 | 25 % | – | 3.0 | 4.0 | commit1 |" in text
    assert "one NVIDIA X1 (python 3, torch 2, transformers 5, triton 3)." in text
    with pytest.raises(SystemExit, match="no results"):
        keep([tmp_path], tmp_path)
