"""Whole steps of GRPO, as `slime train` takes them on this device: phases, tokens per second, and the time without a kernel."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.on_gpu.job import Findings, NotHere
from benchmarks.on_gpu.kernels import Recorded, Recorder
from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.measure_training import words_that_fit
from benchmarks.on_gpu.models import checkpoint
from slime_core.plugins import Plugins
from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample

ROLLOUTS, RECORDED = 6, 4
"""Rollouts of a run, and the number, from 0, of the one in which kernels are recorded: neither its times count nor those of the one
behind it. The first two warm up."""


async def by_chance(args: Any, sample: Sample) -> float:
    """The reward: a number that the answer's tokens decide."""
    return float(sum(sample.tokens) % 2)


class Watched(Plugins):
    """All plugins, with a recorder that runs from when the engine has got its weights for a rollout until it gets the next ones."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine, self._updates = machine, 0
        self._recorder: Recorder | None = None
        self.recorded: Recorded | None = None
        self.problem = ""

    def notify(self, hook: str, **arguments: Any) -> None:
        """Tell observers, and look at what they are told."""
        super().notify(hook, **arguments)
        if hook != "slime_weights_updated":
            return
        try:
            if self._updates == RECORDED:
                self._recorder = Recorder(self._machine)
                self._recorder.start()
            elif self._recorder is not None and self.recorded is None:
                self.recorded = self._recorder.stop()
        except Exception as error:  # what was timed before is worth having without it
            self.problem, self._recorder = f"{type(error).__name__}: {error}", None
        self._updates += 1


def grpo(machine: Machine, found: Findings, name: str, prompts: int, samples: int, answer: int) -> None:
    """Rollouts of answers by the embedded engine, a random reward, and a step of training on all of them."""
    from slime_core.cli.train import train

    fitting, needed = words_that_fit(machine, name, [])
    if needed * 1.4 > machine.memory:
        raise NotHere(f"trainer and engine together take about {1.4 * needed / 2**30:.0f} GiB")
    if not machine.on_gpu:
        prompts, samples, answer = 2, 2, 6
    place = checkpoint(machine, name)
    machine.clean()
    rows = machine.scratch / "prompts.jsonl"
    text = "Count to a hundred, and say after every tenth number what you think of it. " * (4 if machine.on_gpu else 1)
    rows.write_text("".join(json.dumps({"text": f"{n}. {text}"}) + "\n" for n in range(prompts * ROLLOUTS)))
    run = machine.scratch / "run"
    words = ["--hf-checkpoint", place, "--prompt-data", rows, "--input-key", "text", "--run-dir", run]
    words += ["--rollout-engine", "local", "--custom-rm-path", f"{__name__}.by_chance", "--advantage-estimator", "grpo"]
    words += ["--num-rollout", ROLLOUTS, "--rollout-batch-size", prompts, "--n-samples-per-prompt", samples]
    words += ["--rollout-max-response-len", answer, "--rollout-temperature", "1.0", "--lr", "1e-6"]
    words += [
        "--local-max-running-requests",
        prompts * samples,
        "--local-max-total-tokens",
        prompts * samples * (answer + 512),
    ]
    words += ["--no-skip-zero-advantages", *fitting]
    plugins = Watched(machine)
    memory: dict[str, float] = {}
    with machine.peak_memory(memory):
        train([*map(str, words), *machine.options], plugins)
    metrics = [line for line in read_metrics(run / "metrics.jsonl") if "perf/train_time" in line]
    timed = metrics[2:RECORDED]
    means = {
        key: sum(m[key] for m in timed) / len(timed)
        for key in sorted(timed[0])
        if key.startswith("perf/") and "hooks" not in key
    }
    found.note(options=" ".join(map(str, words[8:])), **means, **memory)
    step = means["perf/rollout_time"]
    found.note(
        generated_tokens_per_second=prompts * samples * answer / means["perf/generate_time"],
        trained_tokens_per_second=sum(m["train/num_tokens"] for m in timed) / len(timed) / means["perf/train_time"],
        samples_per_second=prompts * samples / step,
    )
    if plugins.recorded is None:
        found.note(recorder=plugins.problem)
        found.holds("a whole step was recorded", False)
        return
    found.note(
        idle_share=plugins.recorded.idle_share(),
        recorded_seconds=plugins.recorded.seconds,
        gaps_ms=plugins.recorded.longest_gaps(),
        kernels=plugins.recorded.table(12),
    )
