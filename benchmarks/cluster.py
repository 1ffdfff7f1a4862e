"""What lies beyond one process: `python -m benchmarks.cluster`, on a CPU with two free cores in about twenty minutes.

Each run is a `slime train` or `slime train-async` of its own, one thread per process. They take turns, several times.

* ray: the same fine-tuning in one process, and with its workers as Ray actors; also of a random model so small that the
  cost of Ray stands out from the step itself.
* dp: fine-tuning with the same global batch in one process and by two training ranks, which have one thread each and half of
  the tokens. What the machine allows at most is measured beside it: the run in one process, twice at the same time.
* async: GRPO with one core for the training rank and one for the engine: synchronous, one step off, fully asynchronous.
  Each sample of a group is generated to a length of its own, so that all variants generate and train as many tokens.

Prints, and writes to benchmarks/results, a file for each part: seconds per step from the end of the first one to the end of the
last, ratios run by run, and what shows that the work is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.grpo import questions
from benchmarks.processes import prepared, random_model, run_together, unwind_on_signals
from benchmarks.quiet import add_option, require_quiet, sentence
from benchmarks.report import RESULTS, command, machine, spread, tell, versions

PACKAGES = ("slime-core", "torch", "transformers", "ray")
PARTS = ("ray", "dp", "async")
CONVERSATIONS, CUT = {"sft": 4, "tiny": 4, "dp": 8}, {"sft": 128, "tiny": 128, "dp": 256}
TINY_STEPS = 60
PROMPTS, SAMPLES, SHORTEST, LONGEST = 4, 4, 8, 40
DUMP = "rollout_{rollout_id}.jsonl"


@dataclass(frozen=True)
class Variant:
    """One way to do some work.

    Attributes:
        work: "sft", "dp" (more of it) or "grpo", and "tiny" for fine-tuning of the random model.
        part: of the benchmark that shows it.
        command, flags, switches: of slime.
        at_once: how many such runs go on at the same time; a step takes what it takes in the mean of them.
    """

    work: str
    part: str
    command: str = "train-async"
    flags: dict[str, Any] = field(default_factory=dict)
    switches: tuple[str, ...] = ()
    at_once: int = 1


ON_RAY = {"--ray-address": "local"}
FULLY_ASYNC = {**ON_RAY, "--rollout-function-path": "fully_async", "--max-staleness": 1}
TWO_RANKS = {**ON_RAY, "--actor-num-gpus-per-node": 2}
BALANCED, WHOLE = "--balance-data", "--no-fsdp-reshard-after-forward"
VARIANTS = {
    "tiny, in process": Variant("tiny", "ray"),
    "tiny, on Ray": Variant("tiny", "ray", flags=ON_RAY),
    "in process": Variant("sft", "ray"),
    "one rank on Ray": Variant("sft", "ray", flags=ON_RAY),
    "one rank": Variant("dp", "dp"),
    "two separate runs at once": Variant("dp", "dp", at_once=2),
    "two ranks": Variant("dp", "dp", flags=TWO_RANKS, switches=(BALANCED,)),
    "two ranks, weights kept whole": Variant("dp", "dp", flags=TWO_RANKS, switches=(BALANCED, WHOLE)),
    "synchronous": Variant("grpo", "async", "train", ON_RAY),
    "one step off": Variant("grpo", "async", flags=ON_RAY),
    "fully asynchronous": Variant("grpo", "async", flags=FULLY_ASYNC),
}
TWO = [name for name in VARIANTS if name.startswith("two ranks")]


@dataclass(frozen=True)
class Run:
    """One run of one variant. Figures are of all its steps but the first.

    Attributes:
        step: seconds from the end of one step to the end of the next.
        idle: share of that in which the trainer did not train: it waited for samples, or the engine took its weights.
        trained_tokens: per step.
        losses: of all steps.
        generated_per_second: tokens; RL only.
        staleness: mean number of versions between the weights that made a token and those that it trained; RL only.
        load_before: load average of the machine when the run began, the run before it included.
        others: the share of all processors' time that others used meanwhile.
    """

    step: float
    idle: float
    trained_tokens: float
    losses: list[float]
    generated_per_second: float | None = None
    staleness: float | None = None
    load_before: float = 0.0
    others: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="parts to measure")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each")
    parser.add_argument("--steps", type=int, default=4, help="steps per run; the first is not timed")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; SmolLM2-135M-Instruct if none is given")
    parser.add_argument("--quick", action="store_true", help="one small run of each, to see that it works; not written")
    add_option(parser)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be at least 2, since the first step is not timed")
    unwind_on_signals()
    variants = {name: v for name, v in VARIANTS.items() if v.part in options.only}
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as scratch:
        tiny = random_model(Path(scratch) / "tiny", width=32, layers=2)
        if options.quick:
            options.repeats, options.steps, options.model = 1, 3, tiny
        model = options.model or prepared("model")
        for repeat in range(options.repeats):
            # Turn about, so that neither always runs on the machine that the other left behind.
            for name in list(variants) if repeat % 2 == 0 else reversed(variants):
                tell(f"repeat {repeat + 1}/{options.repeats}: {name}")
                variant = variants[name]
                small = variant.work == "tiny"
                steps = (6 if options.quick else TINY_STEPS) if small else options.steps
                require_quiet(options.under_load or options.quick)
                run = measure(variant, tiny if small else model, steps)
                tell(f"  {run.step:.3f} s per step, others {100 * run.others:.0f} %")
                runs[name].append(run)
    check(runs)
    print(report(runs, options.only, model.name, options.steps))
    if not options.quick:
        sizes = {"steps": options.steps, "conversations": CONVERSATIONS, "cut": CUT, "tiny_steps": TINY_STEPS}
        sizes |= {"prompts": PROMPTS, "samples": SAMPLES, "shortest": SHORTEST, "longest": LONGEST}
        found = {
            "command": command("cluster"),
            "machine": machine(1),
            "versions": versions(*PACKAGES),
            "model": model.name,
            "work": sizes,
        }
        RESULTS.mkdir(exist_ok=True)
        for part in options.only:
            raw = {name: [asdict(run) for run in runs[name]] for name in runs if VARIANTS[name].part == part}
            (RESULTS / f"cluster-{part}.json").write_text(json.dumps({**found, "runs": raw}, indent=1) + "\n")


# ---------------------------------------------------------------------------------------------------------- the runs


def measure(variant: Variant, model: Path, steps: int) -> Run:
    """Run a variant, as often at once as it says."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(number) for number in range(variant.at_once)]
        for folder in folders:
            folder.mkdir()
        others = run_together([_words(variant, model, steps, folder) for folder in folders])
        runs = [
            read([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
            for folder in folders
        ]
        stale = staleness(folders[0], steps) if variant.work == "grpo" else None
    step = fmean(run.step for run in runs)
    return replace(runs[0], step=step, staleness=stale, load_before=load, others=others)


def read(lines: list[dict[str, float]]) -> Run:
    """The figures of one `metrics.jsonl`."""
    timed = lines[1:]
    seconds = lines[-1]["time"] - lines[0]["time"]
    generated = sum(line.get("rollout/generated_tokens", 0) for line in timed)
    return Run(
        step=seconds / len(timed),
        idle=1 - sum(line["perf/train_time"] for line in timed) / seconds,
        trained_tokens=fmean(line["train/num_trained_tokens"] for line in timed),
        losses=[line["train/loss"] for line in lines],
        generated_per_second=generated / seconds if generated else None,
    )


def staleness(folder: Path, steps: int) -> float:
    """Versions between the weights that made a token and those that it trained, the mean over all tokens of the timed
    steps. Rollout n trains version n."""
    from slime_core.rollout.debug_data import read_debug_data

    return fmean(
        rollout_id - version
        for rollout_id in range(1, steps)
        for sample in read_debug_data(folder / DUMP.format(rollout_id=rollout_id)).samples
        for version in sample.weight_versions
    )


def _words(variant: Variant, model: Path, steps: int, folder: Path) -> list[str]:
    """The command line of one run."""
    flags: dict[str, Any] = {
        "--hf-checkpoint": model,
        "--num-rollout": steps,
        "--max-tokens-per-gpu": 1024,
        "--lr": 1e-5,
        "--lr-decay-style": "constant",
        "--weight-decay": 0,
        "--clip-grad": 1.0,
        "--run-dir": folder,
    }
    switches = ["--calculate-per-token-loss", "--use-dynamic-batch-size", *variant.switches]
    if variant.work == "grpo":
        data = folder / "questions.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in questions(steps * PROMPTS)))
        flags |= {
            "--prompt-data": data,
            "--input-key": "prompt",
            "--label-key": "label",
            "--rollout-function-path": "slime.rollout.sglang_rollout.generate_rollout",
            "--custom-generate-function-path": "benchmarks.cluster.generate_to_own_length",
            "--rollout-engine": "local",
            "--rm-type": "final_answer",
            "--advantage-estimator": "grpo",
            "--rollout-batch-size": PROMPTS,
            "--n-samples-per-prompt": SAMPLES,
            "--rollout-max-response-len": LONGEST,
            "--rollout-temperature": 1.0,
            "--save-debug-rollout-data": folder / DUMP,
        }
        # Every sample is computed in training, whatever its reward, and with the same correction in all variants.
        switches += ["--apply-chat-template", "--no-skip-zero-advantages", "--use-tis"]
    else:
        flags |= {
            "--prompt-data": f"{prepared('data') / 'alpaca_train.jsonl'}@[0:{steps * CONVERSATIONS[variant.work]}]",
            "--input-key": "messages",
            "--rollout-function-path": "sft",
            "--loss-type": "sft_loss",
            "--rollout-batch-size": CONVERSATIONS[variant.work],
            "--rollout-max-context-len": CUT[variant.work],
            "--over-long-sample": "truncate",
            "--no-trainable-token": "skip",
        }
        switches.append("--disable-compute-advantages-and-returns")
    words = [str(word) for flag in (flags | variant.flags).items() for word in flag]
    return [sys.executable, "-m", "slime_core", variant.command, *switches, *words]


async def generate_to_own_length(args: Any, sample: Any, sampling_params: dict[str, Any], engine: Any) -> Any:
    """slime's own generator; the samples of a group get lengths from the shortest to the longest, evenly. slime calls it
    by its import path."""
    from slime_rollout_sglang.generate import generate

    longest, place = sampling_params["max_new_tokens"], sample.index % args.n_samples_per_prompt
    length = SHORTEST + (longest - SHORTEST) * place // (args.n_samples_per_prompt - 1)
    return await generate(args, sample, {**sampling_params, "min_new_tokens": length, "max_new_tokens": length}, engine)


def check(runs: dict[str, list[Run]]) -> None:
    """Stop if variants did different work."""
    for work in dict.fromkeys(VARIANTS[name].work for name in runs):
        counts = {name: {run.trained_tokens for run in runs[name]} for name in runs if VARIANTS[name].work == work}
        if len(set.union(*counts.values())) > 1:
            raise SystemExit(f"These should train as many tokens per step, but do not: {counts}.")


# ----------------------------------------------------------------------------------------------------------- the report


def report(runs: dict[str, list[Run]], parts: Iterable[str], model: str, steps: int) -> str:
    """The measurements as Markdown."""
    lines = [
        "# Beyond one process",
        "",
        f"`{command('cluster')}`",
        "",
        f"{model}, fp32, {os.cpu_count()} cores, one thread per process, {platform.machine()}. {steps - 1} of {steps} steps "
        f"timed. Median (lowest to highest) of {len(next(iter(runs.values())))} runs in turn.",
    ]
    tables = {
        "ray": lambda: _ray_table(runs, model),
        "dp": lambda: _dp_table(runs),
        "async": lambda: _async_table(runs),
    }
    for part in PARTS:
        if part in parts:
            lines += ["", *tables[part]()]
    lines += ["", sentence([run.others for measured in runs.values() for run in measured])]
    return "\n".join(lines)


def _ray_table(runs: dict[str, list[Run]], model: str) -> list[str]:
    lines = [
        "## What Ray costs",
        "",
        f"Fine-tuning, {CONVERSATIONS['sft']} conversations of at most {CUT['sft']} tokens per step; {len(runs['tiny, on Ray'][0].losses)} "
        "steps of the random model.",
        "",
        "| model | s per step in process | s per step on Ray | difference | share |",
        "|---|---|---|---|---|",
    ]
    for shown, here, there in (
        ("random, 2 layers of width 32", "tiny, in process", "tiny, on Ray"),
        (model, "in process", "one rank on Ray"),
    ):
        pairs = [(a.step, b.step) for a, b in zip(runs[here], runs[there], strict=True)]
        cells = [spread([a for a, _ in pairs], "", 3), spread([b for _, b in pairs], "", 3)]
        cells.append(spread([1000 * (b - a) for a, b in pairs], " ms", 1))
        cells.append(spread([100 * (b - a) / a for a, b in pairs], " %", 1))
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return lines


def _dp_table(runs: dict[str, list[Run]]) -> list[str]:
    one = runs["one rank"]
    lines = [
        "## Two training ranks",
        "",
        f"Fine-tuning, the same {CONVERSATIONS['dp']} conversations of at most {CUT['dp']} tokens per step for one rank and for "
        "two, with `--balance-data`; kept whole: `--no-fsdp-reshard-after-forward`. The last row is the most that the machine allows: "
        "two separate runs in one process each, at the same time, against such a run alone.",
        "",
        "| | s per step | speed-up | efficiency | of what the machine allows |",
        "|---|---|---|---|---|",
        f"| one rank, in process | {spread([run.step for run in one], '', 2)} | | | |",
    ]
    allowed = runs["two separate runs at once"]
    for name in (*TWO, "two separate runs at once"):
        at_once = VARIANTS[name].at_once
        ratios = [at_once * a.step / b.step for a, b in zip(one, runs[name], strict=True)]
        shares = [50 * at_once * a.step / b.step for a, b in zip(allowed, runs[name], strict=True)]
        cells = [spread([run.step for run in runs[name]], "", 2), spread(ratios, "×", 2)]
        cells += [spread([50 * ratio for ratio in ratios], " %", 0), spread(shares, " %", 0)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    losses = [runs[name][0].losses for name in ("one rank", *TWO)]
    furthest = max(abs(a - b) for other in losses[1:] for a, b in zip(losses[0], other, strict=True))
    lines += [
        "",
        f"The largest difference of a loss between one rank and two is {furthest:.1e}:",
        "",
        f"| step | one rank | {' | '.join(TWO)} |",
        "|---" * (2 + len(TWO)) + "|",
    ]
    for step, found in enumerate(zip(*losses, strict=True)):
        lines.append(f"| {step} | {' | '.join(f'{loss:.6f}' for loss in found)} |")
    return lines


def _async_table(runs: dict[str, list[Run]]) -> list[str]:
    lines = [
        "## Asynchronous RL",
        "",
        f"GRPO, {PROMPTS} prompts × {SAMPLES} responses of {SHORTEST} to {LONGEST} tokens, one optimizer step per rollout; "
        "one core for the trainer, one for the engine.",
        "",
        "| | s per rollout | faster than synchronous by | generated tokens/s | trainer idle | mean staleness |",
        "|---|---|---|---|---|---|",
    ]
    base = runs["synchronous"]
    for name in ("synchronous", "one step off", "fully asynchronous"):
        measured = runs[name]
        ratios = [a.step / b.step for a, b in zip(base, measured, strict=True)]
        stale = [run.staleness for run in measured if run.staleness is not None]
        cells = [
            spread([run.step for run in measured], "", 2),
            "—" if measured is base else spread(ratios, "×", 2),
            spread([run.generated_per_second or 0.0 for run in measured], "", 0),
            spread([100 * run.idle for run in measured], " %", 0),
            f"{median(stale):.2f}" if stale else "—",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
