"""slime against TRL's SFTTrainer on the same work: `python -m benchmarks.sft`, on a CPU in about twenty minutes.

Both fine-tune SmolLM2-135M-Instruct in fp32 on the same alpaca conversations, in the same order, with the same trained
tokens, optimizer and number of threads. They run in turn, each in a process of its own, several times. slime runs through
its command line, in one process and once more as two training ranks with one thread each (whose memory is that of all processes
together), TRL through its trainer in a virtual environment that is made once.

Prints, and writes to benchmarks/results: tokens per second (all tokens of the conversations, no padding, first step left
out), their ratio run by run, peak memory, the losses, the share of the machine's matrix-product peak that slime reaches
and the share of its time in which it waits for data.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gemm import Shapes, step_flops
from benchmarks.processes import (
    ROOT,
    measured_environment,
    prepared,
    python_path,
    run_family,
    run_process,
    unwind_on_signals,
)
from benchmarks.quiet import add_option, require_quiet, sentence
from benchmarks.report import RESULTS, command, machine, spread, tell, versions

VENV = ROOT / ".cache" / "benchmarks" / "trl-venv"
TRL = ["torch", "trl==1.16.0", "transformers", "accelerate", "datasets"]
MAX_LENGTH = 1024
LR = 1e-5

SLIME: dict[str, tuple[str, ...]] = {
    "slime": (),
    "slime, two ranks": (
        *("--ray-address", "local", "--actor-num-gpus-per-node", "2"),
        *("--balance-data", "--no-fsdp-reshard-after-forward"),
    ),
}
"""The flags of each. Two ranks have one thread each."""
TRAINERS: dict[str, dict[str, Any]] = {
    "TRL, its defaults": {},
    "TRL, tuned": {"gradient_checkpointing": False, "padding_free": True, "max_length": None},
}
CONTESTANTS = [*SLIME, *TRAINERS]


@dataclass(frozen=True)
class Result:
    """One run of one contestant.

    Attributes:
        tokens_per_second: tokens of all steps but the first, divided by the time from the end of the first step to the
            end of the last.
        peak_gib: largest resident memory of the process.
        data_wait_share: share of the time in which the trainer waited for samples; slime only.
        load_before: load average of the machine when the run began, the run before it included.
        others: the share of all processors' time that others used meanwhile.
    """

    tokens_per_second: float
    peak_gib: float
    losses: list[float]
    data_wait_share: float | None = None
    load_before: float = 0.0
    others: float = 0.0


@dataclass(frozen=True)
class Work:
    """What is trained: rows of `input_ids` and `labels`, and how many make a step."""

    model: Path
    data: Path
    rows: list[dict[str, list[int]]]
    batch_size: int

    @property
    def steps(self) -> int:
        return len(self.rows) // self.batch_size

    @property
    def timed(self) -> list[dict[str, list[int]]]:
        """The rows of all steps but the first."""
        return self.rows[self.batch_size :]

    @property
    def flops(self) -> float:
        """Floating-point operations of the timed rows."""
        lengths = [len(row["input_ids"]) for row in self.timed]
        trained = sum(label != -100 for row in self.timed for label in row["labels"])
        return step_flops(Shapes.of(self.model), lengths, trained)

    def tokens(self) -> int:
        return sum(len(row["input_ids"]) for row in self.timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--steps", type=int, default=6, help="steps per run; the first is not timed")
    parser.add_argument("--batch-size", type=int, default=8, help="conversations per step")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each")
    parser.add_argument("--without", nargs="*", default=[], choices=CONTESTANTS, help="contestants to leave out")
    add_option(parser)
    options = parser.parse_args()
    unwind_on_signals()
    contestants = [name for name in CONTESTANTS if name not in options.without]
    environment = measured_environment(options.threads)
    work = prepare_work(options.steps, options.batch_size)
    python = trl_python() if any(name in TRAINERS for name in contestants) else ""
    results: dict[str, list[Result]] = {name: [] for name in contestants}
    peaks: list[float] = []
    for repeat in range(options.repeats):
        require_quiet(options.under_load)
        peaks.append(max(gemm_rates(work, environment).values()))
        # Turn about, so that neither always runs on the machine that the other left behind.
        for name in contestants if repeat % 2 == 0 else reversed(contestants):
            tell(f"repeat {repeat + 1}/{options.repeats}: {name}")
            require_quiet(options.under_load)
            load = os.getloadavg()[0]
            if name in SLIME:
                run = run_slime(work, environment, SLIME[name])
            else:
                run = run_trl(work, TRAINERS[name], python, environment)
            run = replace(run, load_before=load)
            tell(f"  {run.tokens_per_second:.0f} tok/s, {run.peak_gib:.2f} GiB, others {100 * run.others:.0f} %")
            results[name].append(run)
    text = report(work, results, max(peaks), options.threads)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sft-cpu.md").write_text(text + "\n")
    about = {"command": command("sft"), "machine": machine(options.threads)}
    about["versions"] = versions("slime-core", "torch", "transformers")
    raw = {**about, "gemm_peak_gflops": peaks, "flops": work.flops, "tokens": work.tokens()}
    runs = {name: [asdict(run) for run in found] for name, found in results.items()}
    (RESULTS / "sft-cpu.json").write_text(json.dumps({**raw, "runs": runs}, indent=1) + "\n")


def prepare_work(steps: int, batch_size: int) -> Work:
    """The first conversations of the training file, rendered and masked by slime's default mask."""
    from transformers import AutoTokenizer

    from slime_core.plugins import Plugins

    model, data = (prepared(what) for what in ("model", "data"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    mask = Plugins().select("loss_mask", "auto")
    rows = []
    for line in (data / "alpaca_train.jsonl").read_text(encoding="utf-8").splitlines()[: steps * batch_size]:
        masked = mask(tokenizer, json.loads(line)["messages"], None)
        pairs = list(zip(masked.token_ids, masked.loss_mask, strict=True))[:MAX_LENGTH]
        labels = [token if trained else -100 for token, trained in pairs]
        rows.append({"input_ids": [token for token, _ in pairs], "labels": labels})
    return Work(model, data / "alpaca_train.jsonl", rows, batch_size)


def trl_python() -> str:
    """The interpreter of an environment with TRL, made on first use."""
    return environment_with(VENV, TRL)


def environment_with(venv: Path, requirements: list[str]) -> str:
    """The interpreter of a virtual environment that has some packages, made on first use."""
    python, stamp = venv / "bin" / "python", venv / ".complete"
    if not stamp.exists() or stamp.read_text() != " ".join(requirements):
        tell(f"installing TRL into {venv} (once; some minutes)")
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", ROOT / "constraints.txt", *requirements], check=True)
        stamp.write_text(" ".join(requirements))
    return str(python)


def gemm_rates(work: Work, environment: dict[str, str]) -> dict[str, float]:
    """GFLOP/s of the model's matrix products on a packed row of average length."""
    average = sum(len(row["input_ids"]) for row in work.rows) // work.steps
    words = [sys.executable, "-m", "benchmarks.gemm", str(work.model), str(average)]
    large_pages = {"THP_MEM_ALLOC_ENABLE": "1"}  # the fastest that the machine gives
    done = subprocess.run(words, stdout=-1, text=True, check=True, env=environment | large_pages, cwd=ROOT)
    return json.loads(done.stdout)


def run_slime(work: Work, environment: dict[str, str], more: tuple[str, ...] = ()) -> Result:
    """One run of `slime train-async`.

    Args:
        more: flags for several processes on Ray; none: it is one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        flags = {
            "--hf-checkpoint": work.model,
            "--rollout-function-path": "sft",
            "--prompt-data": f"{work.data}@[0:{len(work.rows)}]",
            "--input-key": "messages",
            "--num-rollout": work.steps,
            "--rollout-batch-size": work.batch_size,
            "--rollout-max-context-len": MAX_LENGTH,
            "--over-long-sample": "truncate",
            "--loss-type": "sft_loss",
            "--max-tokens-per-gpu": work.batch_size * MAX_LENGTH,
            "--lr": LR,
            "--lr-decay-style": "constant",
            "--weight-decay": 0,
            "--clip-grad": 1.0,
            "--run-dir": scratch,
        }
        switches = [
            "--calculate-per-token-loss",
            "--disable-compute-advantages-and-returns",
            "--use-dynamic-batch-size",
        ]
        words = [sys.executable, "-m", "slime_core", "train-async", *switches, *more]
        words += [str(word) for flag in flags.items() for word in flag]
        ended = run_family(words, on_ray(environment)) if more else run_process(words, environment)
        steps = [json.loads(line) for line in (Path(scratch) / "metrics.jsonl").read_text().splitlines()]
    timed = steps[1:]
    if (tokens := sum(step["train/num_tokens"] for step in timed)) != work.tokens():
        raise SystemExit(f"slime trained on {tokens:.0f} tokens, but TRL is given {work.tokens()}.")
    return Result(
        tokens_per_second=work.tokens() / (steps[-1]["time"] - steps[0]["time"]),
        peak_gib=ended.peak_gib,
        others=ended.others,
        losses=[step["train/loss"] for step in steps],
        data_wait_share=sum(step["perf/data_wait_time"] for step in timed)
        / sum(step["perf/rollout_time"] for step in timed),
    )


def on_ray(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a run on a cluster of its own, one thread per process."""
    kept = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": python_path()}


def run_trl(work: Work, options: dict[str, Any], python: str, environment: dict[str, str]) -> Result:
    """One run of TRL's SFTTrainer."""
    with tempfile.TemporaryDirectory() as scratch:
        job, result = Path(scratch) / "job.json", Path(scratch) / "result.json"
        settings = {"model": str(work.model), "batch_size": work.batch_size, "max_length": MAX_LENGTH, "lr": LR}
        job.write_text(json.dumps({**settings, "rows": work.rows, "options": options}))
        worker = ROOT / "benchmarks" / "trl_worker.py"
        ended = run_process([python, str(worker), str(job), str(result)], environment)
        found = json.loads(result.read_text())
    speed = work.tokens() / (found["ends"][-1] - found["ends"][0])
    return Result(speed, ended.peak_gib, found["losses"], others=ended.others)


def report(work: Work, results: dict[str, list[Result]], peak: float, threads: int) -> str:
    """The measurements as Markdown."""
    steps = f"{work.steps} steps of {work.batch_size} conversations, {work.tokens()} tokens timed"
    lines = [
        "# Supervised fine-tuning on a CPU",
        "",
        f"`{command('sft')}`",
        "",
        f"SmolLM2-135M-Instruct, fp32, {steps}, {threads} threads, {platform.machine()}. Median (lowest to highest) of "
        f"{len(next(iter(results.values())))} runs in turn.",
        "",
        "| | tokens/s | slime is faster by | peak memory | largest difference of a loss |",
        "|---|---|---|---|---|",
    ]
    ours = results.get("slime", [])
    for name, runs in results.items():
        ratio = difference = "—"
        if ours and runs is not ours:
            ratio = spread([a.tokens_per_second / b.tokens_per_second for a, b in zip(ours, runs, strict=True)], "×", 2)
            difference = f"{max(abs(a - b) for a, b in zip(ours[0].losses, runs[0].losses, strict=True)):.1e}"
        speed = spread([run.tokens_per_second for run in runs], "", 0)
        memory = spread([run.peak_gib for run in runs], " GiB", 2)
        lines.append(f"| {name} | {speed} | {ratio} | {memory} | {difference} |")
    lines += ["", "| step | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for step in range(work.steps):
        lines.append(f"| {step} | " + " | ".join(f"{runs[0].losses[step]:.6f}" for runs in results.values()) + " |")
    if ours:
        per_token = work.flops / work.tokens()
        reached = [
            f"{name} reaches {spread([100 * run.tokens_per_second * per_token / 1e9 / peak for run in runs], ' %', 0)} of it"
            for name, runs in results.items()
            if name in SLIME
        ]
        waits = [run.data_wait_share or 0.0 for run in ours]
        lines += [
            "",
            f"A token needs {per_token / 1e9:.3f} GFLOP (forward and backward, head on trained tokens only). The fastest "
            f"matrix product of the model's shapes reaches {peak:.0f} GFLOP/s here, which would be "
            f"{peak * 1e9 / per_token:.0f} tokens/s; {', '.join(reached)}. "
            f"slime waits for data {spread([100 * w for w in waits], ' %', 2)} of the time.",
        ]
    lines += ["", sentence([run.others for runs in results.values() for run in runs])]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
