"""slime against TRL's GRPOTrainer on the same work: `python -m benchmarks.grpo`, on a CPU in about six minutes.

Both train SmolLM2-135M-Instruct in fp32 on the same arithmetic questions: a step generates a group of responses to each
question, scores them, and makes one optimizer step. Every response is generated to its full length, so that both
generate and train exactly as many tokens whatever they happen to sample. They run in turn, each in a process of its own,
several times. slime runs through its command line, TRL through its trainer in a virtual environment that is made once.

Prints, and writes to benchmarks/results: seconds per step (the first step left out), the ratio run by run, where the
time goes, and the tokens and rewards of both, which show that the work is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.processes import ROOT, measured_environment, prepared, run_process
from benchmarks.quiet import add_option, require_quiet, sentence
from benchmarks.report import RESULTS, command, machine, spread, tell, versions
from benchmarks.sft import trl_python

LR = 1e-5
PARTS = ("generation", "reward", "training", "weight hand-over")


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Attributes:
        flags: of slime's command line; None for TRL.
        options: of TRL's GRPOConfig.
        same_work: computes every sample, as the others do.
    """

    flags: tuple[str, ...] | None = None
    options: dict[str, Any] | None = None
    same_work: bool = True


CONTESTANTS = {
    "slime, all samples": Contestant(flags=("--no-skip-zero-advantages",)),
    "slime, its defaults": Contestant(flags=(), same_work=False),
    "TRL, its defaults": Contestant(options={}),
    "TRL, tuned": Contestant(options={"gradient_checkpointing": False}),
}


@dataclass(frozen=True)
class Run:
    """One run of one contestant. All figures are means over its steps but the first.

    Attributes:
        step: seconds from the end of one step to the end of the next.
        parts: seconds of `PARTS`. "training" is all from rewards to new weights: log-probs, advantages, forward,
            backward, optimizer.
        generated_tokens, trained_tokens, prompt_tokens: per step; the last counts a prompt once per sample.
        without_gradient: samples per step whose group has equal rewards, so that their advantages are 0.
        reward: mean over the samples of all steps.
        peak_gib: largest resident memory of the process.
        load_before: load average of the machine when the run began, the run before it included.
        others: the share of all processors' time that others used meanwhile.
    """

    step: float
    parts: dict[str, float]
    generated_tokens: float
    trained_tokens: float
    prompt_tokens: float
    without_gradient: float
    reward: float
    peak_gib: float
    load_before: float
    others: float


@dataclass(frozen=True)
class Work:
    """What is trained: questions as rows of `prompt` (chat messages) and `label`."""

    model: Path
    rows: list[dict[str, Any]]
    steps: int
    prompts: int
    samples: int
    length: int

    @property
    def tokens(self) -> int:
        """Generated, and trained, tokens per step."""
        return self.prompts * self.samples * self.length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="runs of each")
    parser.add_argument("--steps", type=int, default=2, help="steps per run; the first is not timed")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per step")
    parser.add_argument("--samples", type=int, default=6, help="samples per prompt")
    parser.add_argument("--length", type=int, default=14, help="tokens per response")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each")
    parser.add_argument("--without", nargs="*", default=[], choices=list(CONTESTANTS), help="contestants to leave out")
    add_option(parser)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be at least 2, since the first step is not timed")
    environment = measured_environment(options.threads)
    rows = questions(options.steps * options.prompts)
    work = Work(prepared("model"), rows, options.steps, options.prompts, options.samples, options.length)
    python = trl_python()
    contestants = {name: one for name, one in CONTESTANTS.items() if name not in options.without}
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    for repeat in range(options.repeats):
        # Turn about, so that neither always runs on the machine that the other left behind.
        for name in list(contestants) if repeat % 2 == 0 else reversed(contestants):
            tell(f"repeat {repeat + 1}/{options.repeats}: {name}")
            require_quiet(options.under_load)
            run = measure(contestants[name], work, python, environment)
            check(name, run, work)
            tell(f"  {run.step:.2f} s per step, {run.peak_gib:.2f} GiB, others {100 * run.others:.0f} %")
            runs[name].append(run)
    print(report(work, runs, options.threads))
    RESULTS.mkdir(exist_ok=True)
    found = {
        "command": command("grpo"),
        "machine": machine(options.threads),
        "versions": {"slime": versions("slime-core", "torch", "transformers"), "TRL": trl_versions(python)},
        "work": {k: v for k, v in asdict(work).items() if k not in ("model", "rows")} | {"model": work.model.name},
        "runs": {name: [asdict(run) for run in measured] for name, measured in runs.items()},
    }
    (RESULTS / "grpo-cpu.json").write_text(json.dumps(found, indent=1) + "\n")


def questions(count: int) -> list[dict[str, Any]]:
    """Sums and differences of two digits, the same in every run."""
    chance = random.Random(0)
    rows = []
    for _ in range(count):
        a, b, sign = chance.randint(1, 9), chance.randint(1, 9), chance.choice("+-")
        text = f"Compute {a} {sign} {b}. Reply with one number and nothing else."
        rows.append({"prompt": [{"role": "user", "content": text}], "label": str(a + b if sign == "+" else a - b)})
    return rows


async def generate_to_full_length(args: Any, sample: Any, sampling_params: dict[str, Any], engine: Any) -> Any:
    """slime's own generator, told that no response ends before its longest length; slime calls it by its import path."""
    from slime_rollout_sglang.generate import generate

    params = {**sampling_params, "min_new_tokens": sampling_params["max_new_tokens"]}
    return await generate(args, sample, params, engine)


def measure(contestant: Contestant, work: Work, python: str, environment: dict[str, str]) -> Run:
    load = os.getloadavg()[0]
    if contestant.flags is not None:
        return run_slime(work, contestant.flags, environment, load)
    return run_trl(work, contestant.options or {}, python, environment, load)


def run_slime(work: Work, more: tuple[str, ...], environment: dict[str, str], load: float) -> Run:
    """One run of `slime train`."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "questions.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in work.rows))
        flags = {
            "--hf-checkpoint": work.model,
            "--rollout-function-path": "slime.rollout.sglang_rollout.generate_rollout",
            "--rollout-engine": "local",
            "--custom-generate-function-path": "benchmarks.grpo.generate_to_full_length",
            "--prompt-data": data,
            "--input-key": "prompt",
            "--label-key": "label",
            "--rm-type": "final_answer",
            "--advantage-estimator": "grpo",
            "--num-rollout": work.steps,
            "--rollout-batch-size": work.prompts,
            "--n-samples-per-prompt": work.samples,
            "--rollout-max-response-len": work.length,
            "--rollout-temperature": 1.0,
            "--max-tokens-per-gpu": 4096,
            "--lr": LR,
            "--lr-decay-style": "constant",
            "--weight-decay": 0,
            "--clip-grad": 1.0,
            "--run-dir": scratch,
        }
        switches = ["--apply-chat-template", "--calculate-per-token-loss", "--use-dynamic-batch-size", *more]
        words = [sys.executable, "-m", "slime_core", "train", *switches]
        ended = run_process([*words, *(str(word) for flag in flags.items() for word in flag)], environment)
        steps = [json.loads(line) for line in (Path(scratch) / "metrics.jsonl").read_text().splitlines()]

    def mean(value: Callable[[dict[str, float]], float]) -> float:
        return fmean(value(step) for step in steps[1:])

    return Run(
        step=(steps[-1]["time"] - steps[0]["time"]) / (len(steps) - 1),
        parts={
            "generation": mean(lambda step: step["perf/generate_time"] - step["perf/hooks/reward/seconds"]),
            "reward": mean(lambda step: step["perf/hooks/reward/seconds"]),
            "training": mean(lambda step: step["perf/train_time"]),
            "weight hand-over": mean(lambda step: step["perf/update_weights_time"]),
        },
        generated_tokens=mean(lambda step: step["rollout/generated_tokens"]),
        trained_tokens=mean(lambda step: step["train/num_trained_tokens"]),
        prompt_tokens=mean(lambda step: step["train/num_tokens"] - step["rollout/generated_tokens"]),
        without_gradient=mean(lambda step: step["rollout/zero_std/share"] * work.prompts * work.samples),
        reward=fmean(step["rollout/raw_reward"] for step in steps),
        peak_gib=ended.peak_gib,
        load_before=load,
        others=ended.others,
    )


def run_trl(work: Work, more: dict[str, Any], python: str, environment: dict[str, str], load: float) -> Run:
    """One run of TRL's GRPOTrainer."""
    with tempfile.TemporaryDirectory() as scratch:
        job, result = Path(scratch) / "job.json", Path(scratch) / "result.json"
        settings = {**asdict(work), "model": str(work.model), "lr": LR, "options": more}
        job.write_text(json.dumps(settings))
        worker = ROOT / "benchmarks" / "trl_grpo_worker.py"
        ended = run_process([python, str(worker), str(job), str(result)], environment)
        steps = json.loads(result.read_text())

    def mean(name: str) -> float:
        return fmean(step[name] for step in steps[1:])

    whole = (steps[-1]["end"] - steps[0]["end"]) / (len(steps) - 1)
    return Run(
        step=whole,
        parts={
            "generation": mean("generation"),
            "reward": mean("reward"),
            "training": mean("training"),
            "weight hand-over": 0.0,  # it generates with the very weights that it trains
        },
        generated_tokens=mean("generated_tokens"),
        trained_tokens=mean("trained_tokens"),
        prompt_tokens=mean("prompt_tokens"),
        without_gradient=mean("without_gradient"),
        reward=fmean(step["mean_reward"] for step in steps),
        peak_gib=ended.peak_gib,
        load_before=load,
        others=ended.others,
    )


def check(name: str, run: Run, work: Work) -> None:
    """Stop if the work was not that of all others."""
    if (run.generated_tokens, run.trained_tokens) != (work.tokens, work.tokens):
        raise SystemExit(
            f"{name} generated {run.generated_tokens:.0f} and trained {run.trained_tokens:.0f} tokens per step; the "
            f"comparison is about {work.tokens} of each."
        )


def report(work: Work, runs: dict[str, list[Run]], threads: int) -> str:
    """The measurements as Markdown."""
    count = len(next(iter(runs.values())))
    lines = [
        "# A step of GRPO on a CPU",
        "",
        f"`{command('grpo')}`",
        "",
        f"SmolLM2-135M-Instruct, fp32: {work.prompts} prompts × {work.samples} responses of {work.length} tokens, one "
        f"optimizer step; {work.steps - 1} of {work.steps} steps timed, {threads} threads, {platform.machine()}. Median "
        f"(lowest to highest) of {count} runs in turn.",
        "",
        "| | s per step | slime, all samples, is faster by | slime, its defaults, is faster by | peak memory |",
        "|---|---|---|---|---|",
    ]
    for name, measured in runs.items():
        ratios = []
        for ours in ("slime, all samples", "slime, its defaults"):
            pairs = zip(measured, runs.get(ours, []), strict=False)
            found = [theirs.step / own.step for theirs, own in pairs] if not name.startswith("slime") else []
            ratios.append(spread(found, "×", 2) if found else "—")
        step = spread([run.step for run in measured], "", 2)
        memory = spread([run.peak_gib for run in measured], " GiB", 2)
        lines.append(f"| {name} | {step} | {ratios[0]} | {ratios[1]} | {memory} |")
    lines += ["", "| seconds per step | " + " | ".join([*PARTS, "other"]) + " |", "|---" * (len(PARTS) + 2) + "|"]
    for name, measured in runs.items():
        cells = [spread([run.parts[part] for run in measured], "", 3) for part in PARTS]
        cells.append(spread([run.step - sum(run.parts.values()) for run in measured], "", 3))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| per step | prompt tokens | generated | trained | ms per generated token | ms per trained token "
        "| samples without gradient | mean reward |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, measured in runs.items():
        cells = [f"{fmean(getattr(run, f'{kind}_tokens') for run in measured):.0f}" for kind in _COUNTED]
        cells.append(spread([1000 * run.parts["generation"] / run.generated_tokens for run in measured], "", 1))
        cells.append(spread([1000 * run.parts["training"] / run.trained_tokens for run in measured], "", 1))
        cells.append(f"{fmean(run.without_gradient for run in measured):.0f}")
        cells.append(f"{fmean(run.reward for run in measured):.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    skipping = [name for name, one in CONTESTANTS.items() if name in runs and not one.same_work]
    lines += [
        "",
        f"{', '.join(skipping)}: samples without a gradient are not computed in training; the update is the same."
        if skipping
        else "",
        "",
        *(f"{name}: {CONTESTANTS[name].options}." for name in runs if CONTESTANTS[name].options),
    ]
    lines += ["", sentence([run.others for measured in runs.values() for run in measured])]
    return "\n".join(lines)


_COUNTED = ("prompt", "generated", "trained")


def trl_versions(python: str) -> dict[str, str]:
    """Of the packages in TRL's environment that decide the speed."""
    packages = ("torch", "transformers", "trl")
    code = (
        "import importlib.metadata as m, json, sys; "
        f"print(json.dumps({{name: m.version(name) for name in {packages!r}}} | {{'python': sys.version.split()[0]}}))"
    )
    return json.loads(subprocess.run([python, "-c", code], stdout=-1, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
