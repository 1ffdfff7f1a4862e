"""The Megatron train backend against the torch one on the same work: `python -m benchmarks.megatron`, on a CPU in about
twenty minutes, on a GPU in some.

Both fine-tune SmolLM2-135M-Instruct on the same conversations in one process, through the methods that the loop calls, in
fp32, or on a GPU in bfloat16. They run in turn, each in a process of its own, several times. Where the model cannot be
prepared, a random one of its shape takes its place, and rows of random tokens that of the conversations.

Prints, and writes to benchmarks/results: tokens per second (all tokens of the conversations, no padding, first step left out),
their ratio run by run, also by processor time, peak memory, the losses, and on a GPU the share of its bfloat16 peak (MFU).
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gemm import Shapes, step_flops
from benchmarks.on_gpu.machine import device_and_peak
from benchmarks.processes import measured_environment, run_process, smollm2_shaped, unwind_on_signals
from benchmarks.quiet import add_option, require_quiet, sentence
from benchmarks.report import RESULTS, command, machine, spread, tell, versions
from benchmarks.sft import LR, MAX_LENGTH, prepare_work

BACKENDS = ("torch", "megatron")
PACKAGES = ("slime-core", "torch", "transformers", "megatron-core", "transformer-engine")
LONGEST_RANDOM = 300

Row = dict[str, list[int]]


@dataclass(frozen=True)
class Work:
    """What is trained.

    Attributes:
        model: a Hugging Face folder.
        rows: `input_ids` and `labels`, of which -100 is not trained.
        batch_size: rows per step.
        micro_batch: tokens of a packed row at most.
        bf16: on a GPU.
        options: further words for the command line of the Megatron backend.
    """

    model: str
    rows: list[Row]
    batch_size: int
    micro_batch: int
    bf16: bool = False
    options: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        return len(self.rows) // self.batch_size

    @property
    def tokens(self) -> int:
        """Of all steps but the first."""
        return sum(len(row["input_ids"]) for row in self.rows[self.batch_size :])

    @property
    def flops(self) -> float:
        """Floating-point operations of all steps but the first."""
        timed = self.rows[self.batch_size :]
        trained = sum(label != -100 for row in timed for label in row["labels"][1:])
        return step_flops(Shapes.of(Path(self.model)), [len(row["input_ids"]) for row in timed], trained)


@dataclass(frozen=True)
class Run:
    """One run of one backend.

    Attributes:
        tokens_per_second: tokens of all steps but the first, divided by the time of these steps.
        tokens_per_processor_second: the same by the time that the processors computed for this process, which other processes
            on the machine change little; on a CPU.
        peak_gib: largest resident memory of the process, on a GPU the largest that torch had allocated there.
        load_before: load average of the machine when the run began, the run before it included.
        others: the share of all processors' time that others used meanwhile.
    """

    tokens_per_second: float
    tokens_per_processor_second: float
    peak_gib: float
    losses: list[float]
    load_before: float = 0.0
    others: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--steps", type=int, default=5, help="steps per run; the first is not timed")
    parser.add_argument("--batch-size", type=int, help="conversations per step; 8, on a GPU 64")
    parser.add_argument("--micro-batch", type=int, help="tokens of a packed row at most; 1024, on a GPU 32768")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each")
    parser.add_argument("--peak-tflops", type=float, help="of a GPU that this program does not know")
    parser.add_argument("--megatron-options", default="", help="further options of Megatron's, as one word")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    if options.worker:
        train(*options.worker)
        return
    if options.steps < 2:
        parser.error("--steps must be at least 2, since the first step is not timed")
    unwind_on_signals()
    gpu = _has_gpu()
    device, peak = device_and_peak(options.peak_tflops, without_gpu=not gpu)
    with tempfile.TemporaryDirectory() as scratch:
        work = Work(
            *model_and_rows(Path(scratch), options.steps, options.batch_size or (64 if gpu else 8)),
            micro_batch=options.micro_batch or (32768 if gpu else MAX_LENGTH),
            bf16=gpu,
            options=tuple(options.megatron_options.split()),
        )
        runs: dict[str, list[Run]] = {name: [] for name in BACKENDS}
        for repeat in range(options.repeats):
            # Turn about, so that neither always runs on the machine that the other left behind.
            for name in BACKENDS if repeat % 2 == 0 else reversed(BACKENDS):
                tell(f"repeat {repeat + 1}/{options.repeats}: {name}")
                require_quiet(options.under_load)
                run = measure(name, work, options.threads)
                tell(f"  {run.tokens_per_second:.0f} tok/s, {run.peak_gib:.2f} GiB, others {100 * run.others:.0f} %")
                runs[name].append(run)
        print(report(work, runs, device, peak))
        found = {
            "command": command("megatron"),
            "machine": {**machine(options.threads), "device": device, "peak_tflops": peak},
            "versions": versions(*PACKAGES),
            "work": {name: value for name, value in asdict(work).items() if name != "rows"}
            | {"model": Path(work.model).name}
            | {"steps": work.steps, "tokens": work.tokens, "flops": work.flops},
        }
    found["runs"] = {name: [asdict(run) for run in own] for name, own in runs.items()}
    (RESULTS / f"megatron-{'gpu' if gpu else 'cpu'}.json").write_text(json.dumps(found, indent=1) + "\n")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def model_and_rows(scratch: Path, steps: int, batch_size: int) -> tuple[str, list[Row], int]:
    """(SmolLM2-135M-Instruct, its conversations, rows per step), or what takes their place."""
    try:
        work = prepare_work(steps, batch_size)
    except subprocess.CalledProcessError:
        tell("SmolLM2-135M-Instruct cannot be prepared: a random model of its shape, and random tokens")
        generator = random.Random(0)
        rows = []
        for _ in range(steps * batch_size):
            ids = [generator.randrange(256) for _ in range(generator.randrange(20, LONGEST_RANDOM))]
            prompt = len(ids) // 3
            rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
        return str(smollm2_shaped(scratch / "model")), rows, batch_size
    return str(work.model), work.rows, batch_size


def measure(backend: str, work: Work, threads: int) -> Run:
    """One run in a process of its own."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        job, result = Path(scratch) / "job.json", Path(scratch) / "result.json"
        job.write_text(json.dumps({"backend": backend, "work": asdict(work)}))
        words = [sys.executable, "-m", "benchmarks.megatron", "--worker", str(job), str(result)]
        ended = run_process(words, measured_environment(threads))
        found = json.loads(result.read_text())
    memory = ended.peak_gib if found["allocated_gib"] is None else found["allocated_gib"]
    speeds = [work.tokens / sum(found[clock][1:]) for clock in ("seconds", "processor_seconds")]
    return Run(*speeds, memory, found["losses"], load, ended.others)


def train(job: str, result: str) -> None:
    """Train in this process, and write down what was found."""
    import torch

    from slime_core.arguments.namespace import Namespace
    from slime_core.arguments.resolve import resolve
    from slime_core.plugins import Plugins
    from slime_core.training.batches import make_train_batch
    from slime_losses.sft import sft_loss

    given = json.loads(Path(job).read_text())
    work = Work(**given["work"])
    plugins = Plugins()
    words = ["--hf-checkpoint", work.model, "--prompt-data", "none", "--num-rollout", str(work.steps)]
    words += ["--rollout-batch-size", str(work.batch_size), "--lr", str(LR), "--lr-decay-style", "constant"]
    words += ["--weight-decay", "0", "--clip-grad", "1.0", "--train-backend", given["backend"]]
    words += ["--bf16"] if work.bf16 else []
    words += work.options if given["backend"] == "megatron" else ()
    backend: Any = plugins.select("train_backend", given["backend"])(resolve(Namespace(plugins), words).args)
    backend.setup(sft_loss, work.steps)
    losses, seconds, processor = [], [], []
    for step in range(work.steps):
        samples = [_sample(row) for row in work.rows[step * work.batch_size : (step + 1) * work.batch_size]]
        batch = make_train_batch(samples, mean="token", max_tokens=work.micro_batch)
        started = time.perf_counter(), time.process_time()
        losses.append(backend.train_step(batch)["loss"])
        seconds.append(time.perf_counter() - started[0])
        processor.append(time.process_time() - started[1])
    allocated = torch.cuda.max_memory_allocated() / 2**30 if work.bf16 else None
    found = {"losses": losses, "seconds": seconds, "processor_seconds": processor, "allocated_gib": allocated}
    Path(result).write_text(json.dumps(found))


def _sample(row: Row) -> Any:
    from slime_core.sample import Sample

    mask = [int(label != -100) for label in row["labels"][1:]]
    return Sample(tokens=row["input_ids"], response_length=len(mask), loss_mask=mask)


def report(work: Work, runs: dict[str, list[Run]], device: str, peak: float | None) -> str:
    """The measurements as Markdown."""
    per_token = work.flops / work.tokens
    lines = [
        f"{Path(work.model).name}, {'bfloat16' if work.bf16 else 'fp32'}, {device}, {work.steps} steps of {work.batch_size} "
        f"rows, {work.tokens} tokens timed, packed rows of at most {work.micro_batch} tokens. Median (lowest to highest) of "
        f"{len(runs['torch'])} runs in turn.",
        "",
        "| backend | tokens/s | of torch's | by processor time | peak memory | MFU | largest difference of a loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, own in runs.items():
        ratio = computed = difference = share = "—"
        if name != "torch":
            pairs = list(zip(own, runs["torch"], strict=True))
            ratio = spread([a.tokens_per_second / b.tokens_per_second for a, b in pairs], "×", 2)
            if not work.bf16:
                rates = [a.tokens_per_processor_second / b.tokens_per_processor_second for a, b in pairs]
                computed = spread(rates, "×", 2)
            losses = zip(own[0].losses, runs["torch"][0].losses, strict=True)
            difference = f"{max(abs(a - b) for a, b in losses):.1e}"
        if peak and work.bf16:
            share = spread([run.tokens_per_second * per_token / peak / 1e10 for run in own], " %", 1)
        speed = spread([run.tokens_per_second for run in own], "", 0)
        memory = spread([run.peak_gib for run in own], " GiB", 2)
        lines.append(f"| {name} | {speed} | {ratio} | {computed} | {memory} | {share} | {difference} |")
    lines += ["", sentence([run.others for own in runs.values() for run in own])]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
