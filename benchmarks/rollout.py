"""slime's embedded engine against transformers on the same rollout: `python -m benchmarks.rollout`, on a CPU in about
four minutes.

All answer the same prompts with SmolLM2-135M-Instruct in fp32: some prompts of mixed lengths, several samples of each,
all at once, temperature 1, and of each sample as many tokens as its own limit says. They run in turn, each in a process
of its own, several times; loading the model and a short rehearsal are not timed.

* "slime": `LocalEngine`, log-probs included.
* "generate": transformers' `generate`, prompts padded on the left, `num_return_sequences`, no log-probs. It runs to the
  longest limit; only the tokens within each limit count.
* "continuous batching": transformers' `ContinuousBatchingManager`, each request with its limit, no log-probs.

Prints, and writes to benchmarks/results: tokens per second, their ratio run by run, peak memory, and what shares of the
machine's limits slime reaches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from benchmarks.gemm import Shapes, measure
from benchmarks.processes import ROOT, Ended, measured_environment, prepared, run_process
from benchmarks.quiet import add_option, require_quiet, sentence
from benchmarks.report import RESULTS, command, machine, spread, tell, versions

SHORTEST = 8
GEMM_ROWS = 512
READ_BYTES = 2**29


@dataclass(frozen=True)
class Work:
    """Prompts as token ids, and for each the longest response of every sample."""

    model: str
    prompts: list[list[int]]
    limits: list[list[int]]

    @property
    def tokens(self) -> int:
        return sum(map(sum, self.limits))

    @property
    def steps(self) -> int:
        """Forward passes that cannot be avoided: one token of the longest response after the other."""
        return max(map(max, self.limits))

    def requests(self) -> list[tuple[list[int], int]]:
        return [(prompt, limit) for prompt, own in zip(self.prompts, self.limits, strict=True) for limit in own]


@dataclass(frozen=True)
class Result:
    """One run of one contestant. `load_before` is the load average when it began, the run before it included; `others` the share of all
    processors' time that others used meanwhile."""

    tokens_per_second: float
    peak_gib: float
    load_before: float
    others: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--prompts", type=int, default=8, help="prompts")
    parser.add_argument("--samples", type=int, default=6, help="responses to each")
    parser.add_argument(
        "--longest", type=int, default=96, help=f"longest response in tokens; the shortest is {SHORTEST}"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each")
    parser.add_argument("--without", nargs="*", default=[], choices=list(CONTESTANTS), help="contestants to leave out")
    parser.add_argument("--quick", action="store_true", help="one small run of each, to see that it works; not written")
    parser.add_argument("--worker", nargs=3, metavar=("NAME", "JOB", "RESULT"), help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    if options.worker:
        work_on(*options.worker)
        return
    if options.quick:
        options.repeats, options.prompts, options.samples, options.longest = 1, 2, 2, 12
    names = [name for name in CONTESTANTS if name not in options.without]
    environment = measured_environment(options.threads)
    work = prepare_work(options.prompts, options.samples, options.longest)
    results: dict[str, list[Result]] = {name: [] for name in names}
    limits: list[dict[str, float]] = []
    for repeat in range(options.repeats):
        require_quiet(options.under_load or options.quick)
        limits.append(run_worker("machine", work, environment)[0])
        # Turn about, so that neither always runs on the machine that the other left behind.
        for name in names if repeat % 2 == 0 else reversed(names):
            tell(f"repeat {repeat + 1}/{options.repeats}: {name}")
            require_quiet(options.under_load or options.quick)
            load = os.getloadavg()[0]
            found, ended = run_worker(name, work, environment)
            results[name].append(Result(work.tokens / found["seconds"], ended.peak_gib, load, ended.others))
            tell(
                f"  {results[name][-1].tokens_per_second:.0f} tok/s, {ended.peak_gib:.2f} GiB, others {100 * ended.others:.0f} %"
            )
    print(report(work, results, limits, options.threads))
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        raw = {"command": command("rollout"), "machine": machine(options.threads)}
        raw |= {
            "versions": versions("slime-core", "torch", "transformers"),
            "threads": options.threads,
            "tokens": work.tokens,
            "steps": work.steps,
        }
        runs = {name: [asdict(run) for run in found] for name, found in results.items()}
        text = json.dumps({**raw, "limits": limits, "runs": runs}, indent=1)
        (RESULTS / "rollout-cpu.json").write_text(text + "\n")


def prepare_work(prompts: int, samples: int, longest: int) -> Work:
    """The first questions of the training file, and limits spread evenly from `SHORTEST` to `longest`, shuffled."""
    from transformers import AutoTokenizer

    model, data = (prepared(what) for what in ("model", "data"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line)["messages"] for line in (data / "alpaca_train.jsonl").read_text("utf-8").splitlines()]
    questions = [[message for message in row if message["role"] != "assistant"][:1] for row in rows[:prompts]]
    ids = [tokenizer.apply_chat_template(q, add_generation_prompt=True, return_dict=False) for q in questions]
    count = prompts * samples
    limits = [SHORTEST + round((longest - SHORTEST) * n / (count - 1)) for n in range(count)]
    random.Random(0).shuffle(limits)
    return Work(str(model), ids, [limits[n : n + samples] for n in range(0, count, samples)])


def run_worker(name: str, work: Work, environment: dict[str, str]) -> tuple[dict[str, float], Ended]:
    """What one process measured, and what was seen of it."""
    with tempfile.TemporaryDirectory() as scratch:
        job, result = Path(scratch) / "job.json", Path(scratch) / "result.json"
        job.write_text(json.dumps(asdict(work)))
        words = [sys.executable, "-m", "benchmarks.rollout", "--worker", name, str(job), str(result)]
        ended = run_process(words, {**environment, "PYTHONPATH": str(ROOT)})
        return json.loads(result.read_text()), ended


def work_on(name: str, job: str, result: str) -> None:
    """In a process of its own: measure the machine or one contestant."""
    work = Work(**json.loads(Path(job).read_text()))
    if name == "machine":
        found = machine_limits(work)
    else:
        run = CONTESTANTS[name](work)
        run([(prompt, 2) for prompt, _ in work.requests()[:2]])  # rehearsal
        started = time.perf_counter()
        counts = run(work.requests())
        found = {"seconds": time.perf_counter() - started}
        if sum(counts) != work.tokens:
            raise SystemExit(f"{name} generated {sum(counts)} tokens within the limits; expected {work.tokens}.")
    Path(result).write_text(json.dumps(found))


Run = Callable[[list[tuple[list[int], int]]], list[int]]
"""Answers requests, pairs of prompt and limit, samples of a prompt one after the other; returns how many tokens each got."""


def slime(work: Work) -> Run:
    from slime_engine_local.engine import LocalEngine

    limits = {"local_max_running_requests": 64, "local_max_total_tokens": 65536, "colocate": False, "offload": False}
    limits |= {"local_decoding": "auto", "bf16": False, "rollout_num_gpus": None}
    pixels = {"image_min_pixels": None, "image_max_pixels": None}
    engine = LocalEngine(SimpleNamespace(hf_checkpoint=work.model, **limits, **pixels))

    def run(requests: list[tuple[list[int], int]]) -> list[int]:
        async def together() -> list[Any]:
            calls = [
                engine.generate(prompt, {"max_new_tokens": limit, "ignore_eos": True, "seed": seed})
                for seed, (prompt, limit) in enumerate(requests)
            ]
            return await asyncio.gather(*calls)

        answers = asyncio.run(together())
        return [len(answer.log_probs) for answer in answers]

    return run


def transformers_model(work: Work) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).eval()


def generate(work: Work) -> Run:
    import torch

    model = transformers_model(work)
    model.generation_config.eos_token_id = None  # nothing but the limit ends a response

    def run(requests: list[tuple[list[int], int]]) -> list[int]:
        prompts = list(dict.fromkeys(tuple(prompt) for prompt, _ in requests))
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        longest = max(limit for _, limit in requests)
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=longest,
                num_return_sequences=len(requests) // len(prompts),
                pad_token_id=0,
            )
        return [min(limit, output.shape[1] - width) for _, limit in requests]

    return run


def continuous_batching(work: Work) -> Run:
    import logging

    from transformers import ContinuousBatchingConfig, GenerationConfig

    logging.disable(logging.WARNING)
    model = transformers_model(work)
    settings = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0)
    memory = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=2048)  # else it takes most of the machine's

    def run(requests: list[tuple[list[int], int]]) -> list[int]:
        with model.continuous_batching_context_manager(settings, continuous_batching_config=memory) as manager:
            names = [manager.add_request(prompt, max_new_tokens=limit, eos_token_id=-1) for prompt, limit in requests]
            found: dict[str, int] = {}
            while len(found) < len(names):
                if (output := manager.get_result(timeout=1)) is not None and output.is_finished():
                    found[output.request_id] = len(output.generated_tokens)
        return [found[name] for name in names]

    return run


CONTESTANTS: dict[str, Callable[[Work], Run]] = {
    "slime": slime,
    "generate": generate,
    "continuous batching": continuous_batching,
}


def machine_limits(work: Work) -> dict[str, float]:
    """GB/s of reading memory, GFLOP/s of the fastest of the model's matrix products; the best of several."""
    import torch

    matrix, vector = torch.ones(READ_BYTES // 4096, 1024), torch.ones(1024)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        torch.mv(matrix, vector)
        seconds.append(time.perf_counter() - started)
    return {
        "read_gb_per_second": READ_BYTES / 1e9 / min(seconds),
        "gflop_per_second": max(measure(Shapes.of(Path(work.model)), GEMM_ROWS).values()),
    }


def least_seconds(work: Work, read: float, gflops: float) -> tuple[float, float]:
    """What reading all weights once per step takes, and what the operations take: each weight twice for every token of a
    response but its last and for every prompt token once, the head for every response token."""
    shapes = Shapes.of(Path(work.model))
    layer = 2 * shapes.hidden * (shapes.query + shapes.key_value) + 3 * shapes.hidden * shapes.intermediate
    layers, head = shapes.layers * layer, shapes.hidden * shapes.vocabulary
    count = len(work.requests())
    passed = sum(map(len, work.prompts)) + work.tokens - count
    operations = 2 * layers * passed + 2 * head * work.tokens
    return work.steps * 4 * (layers + head) / 1e9 / read, operations / 1e9 / gflops


def report(work: Work, results: dict[str, list[Result]], limits: list[dict[str, float]], threads: int) -> str:
    """The measurements as Markdown."""
    lengths = [len(prompt) for prompt in work.prompts]
    lines = [
        f"SmolLM2-135M-Instruct, fp32: {len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens, "
        f"{len(work.requests())} responses of {min(map(min, work.limits))} to {work.steps} tokens at once, {work.tokens} "
        f"tokens in all. {threads} threads, {platform.machine()}. Median (lowest to highest) of {len(limits)} runs in turn.",
        "",
        "| | tokens/s | slime is faster by | peak memory |",
        "|---|---|---|---|",
    ]
    ours = results.get("slime", [])
    for name, runs in results.items():
        ratio = "—"
        if ours and name != "slime":
            ratio = spread([a.tokens_per_second / b.tokens_per_second for a, b in zip(ours, runs, strict=True)], "×", 2)
        speed, memory = (
            spread([r.tokens_per_second for r in runs], "", 0),
            spread([r.peak_gib for r in runs], " GiB", 2),
        )
        lines.append(f"| {name} | {speed} | {ratio} | {memory} |")
    if ours:
        read, gflops = (max(m[key] for m in limits) for key in ("read_gb_per_second", "gflop_per_second"))
        reading, computing = least_seconds(work, read, gflops)
        taken = work.tokens / median(run.tokens_per_second for run in ours)
        lines += [
            "",
            f"Reading all weights once in each of {work.steps} steps, at {read:.1f} GB/s, would take {reading:.1f} s; the "
            f"matrix products, at {gflops:.0f} GFLOP/s, {computing:.1f} s. slime takes {taken:.1f} s: "
            f"{100 * reading / taken:.0f} % and {100 * computing / taken:.0f} % of it.",
        ]
    lines += ["", sentence([run.others for runs in results.values() for run in runs])]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
