"""What is kept of `benchmarks.gpu` in benchmarks/results, a file for each kind of device, and how `benchmarks.page` shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.results import newest, read
from benchmarks.report import RESULTS

Jobs = dict[str, dict[str, Any]]


def keep(folders: list[Path], results: Path = RESULTS) -> Path:
    """Write the newest line of each job of these folders of results, and return the file. Traces and logs are not kept.

    Raises:
        SystemExit: there is nothing in the folders.
    """
    lines = [line for folder in folders for line in read(folder)]
    about: dict[str, Any] = {}
    commit = "unknown"
    for line in lines:
        about |= line.get("machine", {})
        commit = line.get("commit", commit)
        line["commit"] = commit
    jobs = newest(lines)
    if not jobs or "device" not in about:
        raise SystemExit(f"There are no results of benchmarks.gpu in {', '.join(map(str, folders))}.")
    file = results / f"gpu-{about['device'].lower().replace(' ', '-')}.json"
    wanted = ("status", "commit", "why", "found")
    shown = {name: {key: line[key] for key in wanted if key in line} for name, line in jobs.items()}
    text = {"command": "python3 -m benchmarks.gpu --all", "machine": about, "jobs": shown}
    file.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    return file


def section(file: Path) -> list[str]:
    """The lines of the page for a file that `keep` wrote."""
    kept = json.loads(file.read_text(encoding="utf-8"))
    about, jobs = kept["machine"], kept["jobs"]
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("python", "torch", "transformers", "triton"))
    lines = [
        "",
        f"## {file.stem}",
        "",
        f"`{kept['command']}` on one {about['device']} ({versions}).",
    ]
    checks = {name: job for name, job in jobs.items() if name.startswith("checks/")}
    failed = [name for name, job in jobs.items() if job["status"] == "failed"]
    lines += [f"{len(checks)} checks; failed jobs: {', '.join(failed) or 'none'}.", ""]
    return lines + _training(jobs) + _decoding(jobs) + _grpo(jobs) + _others(jobs)


def _training(jobs: Jobs) -> list[str]:
    rows = []
    for name, found in _found(jobs, "tflops", ("sft/", "fp8/")):
        row = [name, f"{found['tokens_per_second']:,.0f}", f"{found['tflops']:.0f}", _percent(found.get("mfu"))]
        row += [_percent(found.get("share_of_product")), f"{found['peak_gib']:.1f}", f"{found['estimate_gib']:.1f}"]
        rows.append([*row, _commit(jobs, name)])
    head = ["training", "tokens/s", "TFLOP/s", "MFU", "of a large product", "peak GiB", "estimated", "commit"]
    return [*_table(head, rows), ""]


def _decoding(jobs: Jobs) -> list[str]:
    rows = []
    for name, found in _found(jobs, "bandwidth", ("engine/",)):
        batches = {int(key.removeprefix("batch ")): value for key, value in found.items() if key.startswith("batch ")}
        for batch, of in sorted(batches.items()):
            row = [name, str(batch), f"{of['tokens_per_second']:,.0f}", f"{of['ms_per_step']:.2f}"]
            rows.append([*row, f"{of['limit_ms']:.2f}", _percent(of["share_of_limit"]), _commit(jobs, name)])
    head = ["decoding", "requests", "tokens/s", "ms a step", "limit, ms", "share of it", "commit"]
    return [*_table(head, rows), ""]


def _grpo(jobs: Jobs) -> list[str]:
    rows = []
    for name, found in _found(jobs, "generated_tokens_per_second", ("grpo/",)):
        row = [name, f"{found['perf/generate_time']:.2f}", f"{found['perf/train_time']:.2f}"]
        row += [f"{found['generated_tokens_per_second']:,.0f}", f"{found['trained_tokens_per_second']:,.0f}"]
        rows.append([*row, _percent(found.get("idle_share")), f"{found['peak_gib']:.1f}", _commit(jobs, name)])
    head = ["GRPO", "generating, s", "training, s", "generated tokens/s", "trained tokens/s", "without a kernel"]
    return [*_table([*head, "peak GiB", "commit"], rows), ""]


def _others(jobs: Jobs) -> list[str]:
    rows = []
    for name, found in _found(jobs, "share_of_peak", ("engine/prefill",)):
        share = _percent(found["share_of_peak"])
        rows.append([name, f"{found['tokens_per_second']:,.0f} tokens/s, {share} of the data sheet's products"])
    for name, found in _found(jobs, "gb_per_second", ("weights/",)):
        rates = [f"new weights {found['gb_per_second']:,.0f} GB/s"]
        rates += [
            f"{key.removesuffix('_gb_per_second').replace('_', ' ')} {value:.0f}"
            for key, value in found.items()
            if key.endswith("load_gb_per_second")
        ]
        rows.append([name, ", ".join(rates)])
    products = jobs.get("fp8/products")
    if products is not None and products["status"] == "ok":
        matrices = {key: value for key, value in products["found"].items() if isinstance(value, dict)}
        shown = "; ".join(f"{key} {value['times as fast as bf16']:.2f}×" for key, value in matrices.items())
        rows.append(["fp8/products, against bfloat16", shown])
    named = [[*row, _commit(jobs, row[0].partition(",")[0])] for row in rows]
    return _table(["other figures", "", "commit"], named)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table of Markdown."""
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return [first, "|" + "---|" * len(head), *others]


def _found(jobs: Jobs, figure: str, begins: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    """Names and figures of the jobs that have such a figure."""
    return [(name, job["found"]) for name, job in jobs.items() if name.startswith(begins) and figure in job["found"]]


def _commit(jobs: Jobs, name: str) -> str:
    return str(jobs[name]["commit"])[:7]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
